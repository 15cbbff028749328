"""A stand-in for Mailjet that answers at once.

python mailjet.py PORT STATUS: 200 takes every mail, 401 refuses the keys (the outbox
pauses then). GET /seen tells how many mails it has taken, and which address for events
was registered last.
"""

import asyncio
import json
import re
import sys

STATUS = {200: "200 OK", 401: "401 Unauthorized"}
SENT = b'{"Messages": [{"Status": "success", "To": [{}]}]}'
NONE = b'{"Count": 0, "Total": 0, "Data": []}'


class Mailjet(asyncio.Protocol):
    status = int(sys.argv[2])
    seen = {"mails": 0, "url": None}

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.I)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        status, answer = self.answer(head.partition(b"\r\n")[0], body)
        self.data = b""
        self.transport.write(
            f"HTTP/1.1 {STATUS[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(answer)}\r\n\r\n".encode()
            + answer
        )

    def answer(self, line, body):
        if b" /seen" in line:
            return 200, json.dumps(self.seen).encode()
        if b"/REST/" in line:
            if b"eventcallbackurl" in line and body:
                self.seen["url"] = json.loads(body).get("Url")
            return 200, NONE
        self.seen["mails"] += self.status == 200
        return self.status, SENT


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Mailjet, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
