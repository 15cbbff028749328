"""A stand-in for Mailjet's HTTP API: it keeps what comes, and answers on demand."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl


@dataclass
class Request:
    """One request as it came in."""

    method: str
    path: str
    key: str
    body: Any

    @property
    def message(self) -> dict[str, Any]:
        """The one mail of a Send API request."""
        return self.body["Messages"][0]


@dataclass
class Answer:
    """What to say: a JSON body or raw bytes; hang: not before that event is set."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: threading.Event | None = None


class Callbacks:
    """The addresses that Mailjet sends events to, kept as Mailjet keeps them.

    One row for each type, and one more for a backup: a POST for what is there is
    refused with 400, a PUT changes a row by its ID, and one that changes nothing gets
    304. A GET without a Limit returns 10 rows.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, kind: str, url: str, **more: Any) -> dict[str, Any]:
        """Keep an address, as its owner registered it before."""
        row = {
            **{"ID": len(self.rows) + 1, "APIKeyID": 7, "EventType": kind, "Url": url},
            **{"Version": 1, "Status": "alive", "IsBackup": False},
            **more,
        }
        self.rows.append(row)
        return row

    def url(self, kind: str) -> str:
        """Return the address of a type."""
        [row] = [r for r in self.rows if r["EventType"] == kind and not r["IsBackup"]]
        return str(row["Url"])

    def __call__(self, request: Request) -> Answer:
        """Answer a request for eventcallbackurl."""
        path, _, query = request.path.partition("?")
        if request.method == "GET":
            limit = int(dict(parse_qsl(query)).get("Limit", 10))
            return self._rows(200, self.rows[:limit])
        if request.method == "POST":
            row = {"IsBackup": False, **request.body}
            key = row["EventType"], row["IsBackup"]
            if any((r["EventType"], r["IsBackup"]) == key for r in self.rows):
                what = f"MJ18 A EventCallbackURL resource with value {key} exists."
                return Answer(400, {"ErrorMessage": what, "StatusCode": 400})
            return self._rows(
                201, [self.add(row.pop("EventType"), row.pop("Url"), **row)]
            )
        row_id = path.rstrip("/").rpartition("/")[2]
        for row in self.rows:
            if str(row["ID"]) == row_id:
                if row == {**row, **request.body}:
                    return Answer(304, b"")
                row.update(request.body)
                return self._rows(200, [row])
        return Answer(404, {"ErrorMessage": "Object not found", "StatusCode": 404})

    @staticmethod
    def _rows(status: int, rows: list[dict[str, Any]]) -> Answer:
        body = {"Count": len(rows), "Data": rows, "Total": len(rows)}
        return Answer(status, body)


def success(request: Request) -> Answer:
    """Answer as Mailjet does when all is well."""
    if request.path.endswith("/send"):
        return Answer(body={"Messages": [{"Status": "success", "To": [{}]}]})
    return Answer(body={"Count": 1, "Data": [{}], "Total": 1})


class LocalServer:
    """An HTTP server on a free local port, in a thread; a context manager."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *args: object) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class StandIn(LocalServer):
    """Mailjet on a local port.

    requests holds what came in; answer may be replaced by any function of a Request
    (but for those about event addresses: see callbacks);
    wait(n) returns once n requests are there (the bound only ends a failing test).
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer] = success
        self.callbacks = Callbacks()
        self._came = threading.Condition()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: else 40 ms lie between them

            def respond(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                if len(raw) < length:  # the client died meanwhile
                    return
                scheme, _, value = self.headers.get("Authorization", "").partition(" ")
                key = base64.b64decode(value).decode() if scheme == "Basic" else ""
                body = json.loads(raw) if raw else None
                request = Request(self.command, self.path, key, body)
                with stand_in._came:
                    stand_in.requests.append(request)
                    stand_in._came.notify_all()
                if "eventcallbackurl" in request.path:
                    answer = stand_in.callbacks(request)
                else:
                    answer = stand_in.answer(request)
                if answer.hang is not None:
                    answer.hang.wait(60)
                body = answer.body
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = respond

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://localhost:{self.port}/"

    @property
    def mails(self) -> list[dict[str, Any]]:
        """The mails that came in, in order."""
        return [r.message for r in self.requests if r.path.endswith("/send")]

    def wait_for_mails(self, count: int, seconds: float = 20) -> list[dict[str, Any]]:
        """Return the mails once there are so many."""
        with self._came:
            there = self._came.wait_for(lambda: len(self.mails) >= count, seconds)
        assert there, f"{len(self.mails)} of {count} mails came"
        return self.mails

    def wait(self, count: int, seconds: float = 20) -> list[Request]:
        """Return the requests once there are so many."""
        with self._came:
            there = self._came.wait_for(lambda: len(self.requests) >= count, seconds)
        assert there, f"{len(self.requests)} of {count} requests came"
        return self.requests
