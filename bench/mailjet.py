"""A stand-in for Mailjet that answers at once.

python mailjet.py PORT STATUS: 200 takes every mail, 401 refuses the keys (the outbox
pauses then). GET /count tells how many mails it has taken.
"""

import asyncio
import sys

STATUS = {200: "200 OK", 401: "401 Unauthorized"}
SUCCESS = b'{"Messages": [{"Status": "success", "To": [{}]}]}'


class Mailjet(asyncio.Protocol):
    taken = 0
    status = 200

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end or len(body) < self._length(head):
            return
        self.data = b""
        answer, status = SUCCESS, self.status
        if head.startswith(b"GET /count"):
            answer, status = str(Mailjet.taken).encode(), 200
        elif status == 200:
            Mailjet.taken += 1
        self.transport.write(
            f"HTTP/1.1 {STATUS[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(answer)}\r\n\r\n".encode()
            + answer
        )

    @staticmethod
    def _length(head):
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return int(line.partition(b":")[2])
        return 0


async def main():
    Mailjet.status = int(sys.argv[2])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Mailjet, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
