"""The hub's stand-in: an HTTP server on loopback that can also misbehave."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


class StandIn(ThreadingHTTPServer):
    """A hub on loopback: files by path, the metadata's hashes, and ways to misbehave."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.lfs: dict[str, str] = {}
        self.cut_at: int | None = None  # bytes after which the first answer of each file breaks off
        self.cut: set[str] = set()
        self.silent = threading.Event()  # accepts and never answers
        self.released = threading.Event()
        self.heads = 0
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

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
        if asked := self.headers.get("Range"):
            self.server.ranges.append(asked)
            return self._answer(206, body[int(asked.removeprefix("bytes=").removesuffix("-")) :])
        if self.server.cut_at is not None and self.path not in self.server.cut:
            self.server.cut.add(self.path)
            self._answer(200, body, self.server.cut_at)
            return self.connection.close()
        return self._answer(200, body)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        told = [
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
        self._answer(200, json.dumps(told).encode())
