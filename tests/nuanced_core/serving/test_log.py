"""What clients do every day leaves no traceback in the server's log."""

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest

from nuanced_core.serving.work import Deadline, Limits, WorkQueue
from tests.nuanced_core.serving.conftest import error_of, fake_studio, served, speaker_of, speech_of


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()  # futures log what nobody has seen when they go
    records = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record.getMessage() for record in records if record.exc_info] == []


def leave(url: str, content: bytes, length: int, kind: str = "application/json") -> None:
    """Send a request with a body of a length, of which some comes, and leave."""
    address = urlsplit(url)
    path = "/v1/audio/speech" if kind == "application/json" else "/v1/voices"
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + content)
        time.sleep(0.2)


def body(words: int, response_format: str) -> bytes:
    return json.dumps(
        {"model": "tts-1", "input": "word " * words, "voice": "af_sky", "response_format": response_format}
    ).encode()


def test_work_that_takes_too_long(fakes: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(work_seconds=1.0)
    studio = fake_studio(fakes, seconds=0.15, limits=limits)
    with served(studio, limits) as url, httpx2.Client(base_url=url, timeout=30) as client:
        assert error_of(speech_of(client, input="word " * 50), 504)
        with pytest.raises(httpx2.RemoteProtocolError):  # which an end of the stream would not be
            speech_of(client, input="word " * 50, response_format="pcm")
        assert speech_of(client, input="one").status_code == 200  # after the late ones, in the same thread
    assert "a stream of speech was broken off: this took longer than the 1 s" in caplog.text


@pytest.mark.parametrize("response_format", ["pcm", "wav"])
def test_a_client_that_leaves(fakes: SimpleNamespace, response_format: str) -> None:
    studio = fake_studio(fakes, seconds=0.1)
    with served(studio) as url, httpx2.Client(base_url=url, timeout=30) as client:
        sent = body(20, response_format)
        leave(url, sent, len(sent))
        assert speech_of(client, input="one").status_code == 200
    assert speaker_of(studio).begun == 2


def test_a_client_that_leaves_while_it_sends(fakes: SimpleNamespace) -> None:
    with served(fake_studio(fakes)) as url, httpx2.Client(base_url=url, timeout=30) as client:
        leave(url, b"{", 100)
        leave(url, b'--x\r\nContent-Disposition: form-data; name="files"', 100, "multipart/form-data; boundary=x")
        assert speech_of(client, input="one").status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_work_that_ends_after_the_server(streamed: bool) -> None:
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def work(deadline: Deadline) -> Iterator[bytes]:
        begun.set()
        assert gate.wait(30)
        ended.set()
        yield b"late"

    async def serve() -> None:
        queue = WorkQueue(Limits())
        task = asyncio.create_task(queue.stream(work) if streamed else queue.run(lambda late: list(work(late))))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(serve())
    gate.set()
    assert ended.wait(30)
    time.sleep(0.1)  # for what follows in the thread


def test_a_server_that_is_stopped_while_it_answers(fakes: SimpleNamespace) -> None:
    limits = Limits(running=2)
    studio = fake_studio(fakes, limits=limits)
    speaker = speaker_of(studio)
    speaker.gate.clear()
    with ThreadPoolExecutor(2) as pool, httpx2.Client(timeout=30) as client:
        with served(studio, limits) as url:
            client.base_url = httpx2.URL(url)
            whole, streamed = (
                pool.submit(speech_of, client, input="one two", response_format=response_format)
                for response_format in ("wav", "pcm")
            )
            while speaker.begun < 2:
                time.sleep(0.01)
        assert error_of(whole.result(), 503)["code"] == "stopped"
        with pytest.raises(httpx2.RemoteProtocolError):
            streamed.result()
        speaker.gate.set()
