"""A fake hub: an HTTP server on the loopback interface with configurable failures."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


class FakeHub(ThreadingHTTPServer):
    """A hub with files and metadata, and failures that tests switch on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}  # by URL path
        self.lfs: dict[str, str] = {}  # SHA-256 in the metadata, by path in the repository
        self.cut_at: int | None = None  # number of bytes after which the first answer for each file is cut off
        self.cut: set[str] = set()  # URL paths whose first answer was cut off
        self.silent = threading.Event()  # if set, HEAD requests get no answer until ``released`` is set
        self.released = threading.Event()
        self.heads = 0  # number of HEAD requests
        self.ranges: list[str] = []  # Range headers received

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])

    def do_HEAD(self) -> None:
        self.server.heads += 1
        if self.server.silent.is_set():
            self.server.released.wait(30)
            return
        self._answer(200, b"")

    def do_GET(self) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            return self._answer(404, b"")
        if requested := self.headers.get("Range"):
            self.server.ranges.append(requested)
            return self._answer(206, body[int(requested.removeprefix("bytes=").removesuffix("-")) :])
        if self.server.cut_at is not None and self.path not in self.server.cut:
            self.server.cut.add(self.path)
            self._answer(200, body, self.server.cut_at)
            return self.connection.close()
        return self._answer(200, body)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        metadata = [
            {
                "type": "file",
                "path": path,
                "size": 1,
                "oid": "0" * 40,
                "lfs": {"oid": self.server.lfs[path], "size": 1, "pointerSize": 1},
            }
            for path in form["paths"]
            if path in self.server.lfs
        ]
        self._answer(200, json.dumps(metadata).encode())
