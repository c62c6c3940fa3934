"""nuanced_core.serving.connections: clients that connect and send no request."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest

from nuanced_core.serving.work import Limits
from tests.nuanced_core.serving.conftest import fake_studio, served, speaker_of, speech_of

FEW = Limits(connections=6, head_seconds=0.5)
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def url(fakes: SimpleNamespace) -> Iterator[str]:
    with served(fake_studio(fakes, limits=FEW), FEW) as url:
        yield url


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def test_connections_without_a_request_do_not_keep_others_out(url: str) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(url)) for _ in range(FEW.connections)]
        silent[0].sendall(HEAD)  # without its end
        with httpx2.Client(base_url=url, timeout=30) as client:
            assert client.get("/v1/models").status_code == 503
        assert [connection.recv(100) for connection in silent] == [b""] * len(silent)  # closed
        with httpx2.Client(base_url=url, timeout=30) as client:
            assert client.get("/v1/models").status_code == 200


def test_a_later_request_of_a_connection_must_arrive_in_time_too(url: str) -> None:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=3)  # less than uvicorn's own limit of silence, 5 s
    for _ in range(2):
        connection.request("GET", "/v1/models")
        assert b"mine" in connection.getresponse().read()
    slow = connection.sock
    slow.sendall(HEAD)
    assert slow.recv(100) == b""
    connection.close()


def test_work_and_silence_between_requests_may_take_longer(fakes: SimpleNamespace) -> None:
    studio = fake_studio(fakes, seconds=1.0, limits=FEW)
    with served(studio, FEW) as url, httpx2.Client(base_url=url, timeout=30) as client:
        assert speech_of(client, input="one").status_code == 200
        time.sleep(2 * FEW.head_seconds)
        assert speech_of(client, input="two").status_code == 200
    assert speaker_of(studio).begun == 2
