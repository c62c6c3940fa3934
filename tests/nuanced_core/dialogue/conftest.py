"""A chat endpoint on loopback that answers as a test wants."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class FakeChat(ThreadingHTTPServer):
    """A server with POST /v1/chat/completions that keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.content, self.body = 200, "Fine, thanks.", b""
        self.headers: dict[str, str] = {}
        self.delay = 0.0  # seconds before the answer
        self.drip = 0.0  # seconds between two bytes of the answer
        self.cut = False  # whether the connection ends within the answer
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []  # path, headers, body

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: FakeChat

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, sent))
        time.sleep(self.server.delay)
        message = {"choices": [{"message": {"role": "assistant", "content": self.server.content}}]}
        body = self.server.body or json.dumps(message).encode()
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + 100 * self.server.cut))
        self.end_headers()
        with suppress(ConnectionError):  # of a client that no longer waits
            for start in range(0, len(body), 1 if self.server.drip else len(body)):
                self.wfile.write(body[start : start + 1] if self.server.drip else body)
                time.sleep(self.server.drip)


@pytest.fixture
def chat() -> Iterator[FakeChat]:
    with FakeChat() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
