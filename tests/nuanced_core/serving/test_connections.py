"""Clients that connect and send no request, that read no answer, and that leave."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest

from nuanced_core.serving.work import Limits, WorkQueue
from tests.nuanced_core.serving.conftest import error_of, fake_studio, served, speaker_of, speech_of

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


@pytest.mark.slow
def test_work_and_silence_between_requests_may_take_longer(fakes: SimpleNamespace) -> None:
    studio = fake_studio(fakes, seconds=1.0, limits=FEW)
    with served(studio, FEW) as url, httpx2.Client(base_url=url, timeout=30) as client:
        assert speech_of(client, input="one").status_code == 200
        time.sleep(2 * FEW.head_seconds)
        assert speech_of(client, input="two").status_code == 200
    assert speaker_of(studio).begun == 2


def test_clients_that_do_not_read_their_answers_do_not_keep_others_out(fakes: SimpleNamespace) -> None:
    few = Limits(connections=6, unread_seconds=0.5)
    words = " ".join(["word"] * 400)  # 10 MB of sound, more than a socket takes
    body = json.dumps({"model": "tts-1", "input": words, "voice": "af_sky", "response_format": "wav"}).encode()
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    asked = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    studio = fake_studio(fakes, limits=few)
    with served(studio, few) as url, ExitStack() as stack:
        unread = few.connections - 1
        for _ in range(unread):
            stack.enter_context(connect(url)).sendall(asked)
        until = time.monotonic() + 20
        while speaker_of(studio).spoken < unread * len(words.split()) and time.monotonic() < until:
            time.sleep(0.01)
        with httpx2.Client(base_url=url, timeout=30) as client:
            while (status := client.get("/v1/models").status_code) == 503 and time.monotonic() < until:
                time.sleep(0.1)
        assert status == 200


def post(url: str, path: str, sent: httpx2.Request) -> socket.socket:
    """Send a request; return its connection."""
    connection = connect(url)
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + sent.read())
    return connection


def speech_request(url: str, words: int, response_format: str) -> httpx2.Request:
    body = {"model": "tts-1", "input": "word " * words, "voice": "af_sky", "response_format": response_format}
    return httpx2.Request("POST", url, json=body)


@pytest.mark.parametrize("response_format", ["wav", "pcm"])
def test_a_client_that_leaves_ends_its_work(fakes: SimpleNamespace, response_format: str) -> None:
    studio = fake_studio(fakes, seconds=0.1)
    speaker = speaker_of(studio)
    with served(studio) as url, httpx2.Client(base_url=url, timeout=30) as client:
        with post(url, "/v1/audio/speech", speech_request(url, 100, response_format)):
            while speaker.spoken < 2:
                time.sleep(0.01)
        assert speech_of(client, input="one").status_code == 200
    assert speaker.spoken < 50  # of 101


def test_a_client_that_leaves_while_it_waits_makes_room(
    fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(running=1, waiting=1)
    studio = fake_studio(fakes, limits=limits)
    speaker = speaker_of(studio)
    speaker.gate.clear()
    made: list[object] = []
    queue = WorkQueue(limits)
    monkeypatch.setattr("nuanced_core.serving.app.WorkQueue", lambda limits: queue)
    monkeypatch.setattr(studio, "make_voice", lambda *arguments: made.append(arguments))
    form = httpx2.Request("POST", "http://localhost", files={"files": b"RIFF"})
    with served(studio, limits) as url, httpx2.Client(base_url=url, timeout=30) as client:
        with post(url, "/v1/audio/speech", speech_request(url, 2, "wav")):
            while not speaker.begun:
                time.sleep(0.01)
            for path, sent in (("/v1/audio/speech", speech_request(url, 1, "wav")), ("/v1/voices", form)):
                with post(url, path, sent):
                    while queue._unfinished < 2:
                        time.sleep(0.01)
                    assert error_of(speech_of(client), 503)["code"] == "overloaded"
                while queue._unfinished > 1:
                    time.sleep(0.01)
        speaker.gate.set()
        assert speech_of(client, input="one").status_code == 200
    assert not made
