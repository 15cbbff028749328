"""A stand-in for Mailjet that answers at once.

python mailjet.py PORT STATUS: 200 takes every mail, 401 refuses the keys (the outbox
pauses then). GET /seen tells how many mails it has taken, and which address for events
was registered last.
"""

import asyncio
import json
import re
import sys
from contextlib import suppress

STATUS = int(sys.argv[2])
SENT = b'{"Messages": [{"Status": "success", "To": [{}]}]}'
NONE = b'{"Count": 0, "Total": 0, "Data": []}'
seen = {"mails": 0, "url": None}


def answer(line, body):
    if b" /seen" in line:
        return 200, json.dumps(seen).encode()
    if b"/REST/" in line:
        if b"eventcallbackurl" in line and body:
            seen["url"] = json.loads(body).get("Url")
        return 200, NONE
    seen["mails"] += STATUS == 200
    return STATUS, SENT


async def talk(reader, writer):
    """Answer the requests of one connection."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):  # the other's end
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"content-length: *(\d+)", head, re.I)
            body = await reader.readexactly(int(length[1])) if length else b""
            status, data = answer(head.partition(b"\r\n")[0], body)
            head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(data)}\r\n\r\n"
            writer.write(head.encode() + data)
    writer.close()


async def main():
    server = await asyncio.start_server(talk, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
