"""Limits on size, time and concurrency, and what bad requests are answered."""

import asyncio
import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import soundfile
from torch import Tensor

from nuanced_core.serving.errors import ApiError
from nuanced_core.serving.studio import MadeVoice, Studio
from nuanced_core.serving.work import Limits, WorkQueue
from tests.nuanced_core.serving.conftest import error_of, fake_studio, served, speaker_of, speech_of

SMALL = Limits(
    upload_bytes=200_000,
    json_bytes=1000,
    body_seconds=0.5,
    clip_seconds=3,
    clips=2,
    clip_samples=20_000,
    text_characters=100,
)


def wav(seconds: float, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(int(seconds * rate)) / 5), rate, format="WAV")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("fields", "status", "parameter", "message"),
    [
        ({"input": ""}, 400, "input", "at least 1 character"),
        ({"input": 3}, 400, "input", "valid string"),
        ({"input": "a" * 5000}, 400, "input", "5000 characters are more than 4096"),
        ({"voice": "nobody"}, 404, "voice", "'nobody' is not a voice"),
        ({"voice": {"id": "nobody"}}, 404, "voice", "'nobody' is not a voice"),
        ({"voice": "/etc/passwd.pt"}, 400, "voice", "neither a voice nor a mix"),
        ({"voice": "af_sky+../voice.pt"}, 400, "voice", "neither a voice nor a mix"),
        ({"voice": "af_sky(0)+af_heart(0)"}, 404, "voice", "weights add up to 0"),
        ({"voice": "af_sky(1.2.3)"}, 404, "voice", "not a number"),
        ({"speed": 9}, 400, "speed", "less than or equal to 2 (not 9)"),
        ({"speed": "NaN"}, 400, "speed", "finite"),
        ({"response_format": "aac"}, 400, "response_format", "'mp3', 'opus', 'flac', 'wav' or 'pcm' (not 'aac')"),
        ({"model": "whisper-1"}, 404, "model", "choose from mine, kokoro, tts-1"),
        ({"instructions": "Be merry."}, 400, "instructions", "not permitted"),
    ],
)
def test_a_wrong_field_is_named(
    fields: dict[str, Any], status: int, parameter: str, message: str, client: httpx2.Client
) -> None:
    error = error_of(speech_of(client, **fields), status)
    assert error["param"] == parameter and message in error["message"] and error["type"] == "invalid_request_error"


def test_requests_that_no_route_takes_have_the_same_form(client: httpx2.Client) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["message"] == "GET /v1/nothing: Not Found"
    assert error_of(client.get("/v1/audio/speech"), 405)
    answer = client.post("/v1/audio/speech", content=b"{", headers={"Content-Type": "application/json"})
    assert "invalid JSON" in error_of(answer, 400)["message"]
    assert error_of(client.delete("/v1/voices/af_sky"), 404)["code"] == "voice_not_found"
    assert error_of(client.get("/v1/packs?voice=af_sky&format=exe"), 400)["param"] == "format"
    for path in ("/../guard.py", "/%2e%2e/guard.py", "/page/../index.html", "/index.html"):
        assert client.get(path).status_code == 404


def test_what_is_too_large_is_refused_whether_or_not_it_says_so(fakes: SimpleNamespace) -> None:
    with served(fake_studio(fakes, limits=SMALL), SMALL) as url, httpx2.Client(base_url=url, timeout=30) as client:
        long = wav(1) * 20
        assert error_of(client.post("/v1/voices", files={"files": long}), 413)["code"] == "too_large"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
        chunks = iter([start, *[wav(1)] * 20])
        assert error_of(client.post("/v1/voices", content=chunks, headers=headers), 413)["code"] == "too_large"
        assert error_of(speech_of(client, input="a" * 2000), 413)["code"] == "too_large"
        assert error_of(speech_of(client, input="a" * 200), 400)["code"] == "string_above_max_length"
        assert error_of(client.post("/v1/voices", files={"files": wav(4)}), 413)["code"] == "clip_too_long"
        unknown = wav(4).replace(wav(4)[36:44], b"data\0\0\0\0")  # as by a program that writes to a pipe
        assert "no sound by its header" in error_of(client.post("/v1/voices", files={"files": unknown}), 400)["message"]
        wide = wav(2.9)  # 23,200 samples
        assert error_of(client.post("/v1/voices", files={"files": wide}), 413)["code"] == "clip_too_large"
        three = [("files", ("a.wav", wav(0.1))) for _ in range(3)]
        assert "Too many files" in error_of(client.post("/v1/voices", files=three), 400)["message"]


def test_a_body_that_does_not_arrive_ends_the_connection(fakes: SimpleNamespace) -> None:
    with served(fake_studio(fakes, limits=SMALL), SMALL) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as slow:
            head = f"Host: {address.netloc}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
            slow.sendall(f"POST /v1/audio/speech HTTP/1.1\r\n{head}".encode())
            answer = b""
            while block := slow.recv(4096):
                answer += block
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive in 0.5 s" in answer


def test_few_functions_run_and_wait_and_others_are_refused() -> None:
    gate = threading.Event()

    async def ask() -> None:
        queue = WorkQueue(Limits(running=1, waiting=1))
        accepted = [asyncio.create_task(queue.run(lambda _: gate.wait(30))) for _ in range(2)]
        await asyncio.sleep(0)  # both begin
        with pytest.raises(ApiError, match="2 requests are being answered or wait"):
            await queue.run(lambda _: True)
        gate.set()
        assert await asyncio.gather(*accepted) == [True, True]
        assert await queue.run(lambda _: "there is room again")

    asyncio.run(ask())


def test_a_busy_server_tells_clients_to_come_back(fakes: SimpleNamespace) -> None:
    limits = Limits(running=1, waiting=0)
    studio = fake_studio(fakes, limits=limits)
    speaker = speaker_of(studio)
    with (
        served(studio, limits) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        speaker.gate.clear()
        first = pool.submit(speech_of, client, input="one two")
        while not speaker.begun:
            time.sleep(0.01)
        answer = speech_of(client)
        assert error_of(answer, 503)["type"] == "server_error" and answer.headers["retry-after"] == "5"
        assert client.get("/v1/models").status_code == 200
        speaker.gate.set()
        assert first.result().status_code == 200


def test_work_that_takes_too_long_is_ended_between_sentences(fakes: SimpleNamespace) -> None:
    limits = Limits(work_seconds=0.4)
    studio = fake_studio(fakes, seconds=0.15, limits=limits)
    with served(studio, limits) as url, httpx2.Client(base_url=url, timeout=30) as client:
        began = time.monotonic()
        assert error_of(speech_of(client, input="word " * 500), 504)["code"] == "timeout"
        assert time.monotonic() - began < 5
        assert speech_of(client, input="one").status_code == 200  # the thread is free, though 500 words take 75 s


def test_a_voice_that_was_made_too_late_is_not_kept(fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(work_seconds=1.0)
    studio = fake_studio(fakes, limits=limits)
    gate = threading.Event()

    def make(*arguments: object) -> SimpleNamespace:
        assert gate.wait(30)
        return SimpleNamespace(pack=studio.pack("af_sky"), notes=())

    monkeypatch.setattr("nuanced_core.serving.studio.voice_from_clips", make)
    with served(studio, limits) as url, httpx2.Client(base_url=url, timeout=30) as client:

        def ask() -> httpx2.Response:
            return client.post("/v1/voices", data={"name": "mine"}, files={"files": wav(1)})

        assert error_of(ask(), 504)["code"] == "timeout"
        gate.set()
        assert ask().status_code == 201  # after the late one, in the same thread
    assert [voice.name for voice in studio.made_voices] == ["mine"]


def test_pcm_comes_sentence_by_sentence_and_a_client_that_leaves_ends_the_work(fakes: SimpleNamespace) -> None:
    studio = fake_studio(fakes, seconds=0.05)
    speaker = speaker_of(studio)
    body = {"model": "tts-1", "voice": "af_sky", "response_format": "pcm"}
    with served(studio) as url, httpx2.Client(base_url=url, timeout=30) as client:
        speaker.gate.clear()
        with client.stream("POST", "/v1/audio/speech", json=body | {"input": "one two three four"}) as answer:
            blocks = answer.iter_bytes(24_000)  # a word of the fake
            next(blocks)  # though the second word is not spoken yet
            assert answer.headers["content-type"] == "audio/pcm"
            speaker.gate.set()
            assert sum(map(len, blocks)) == 3 * 24_000
        with client.stream("POST", "/v1/audio/speech", json=body | {"input": "word " * 900}) as answer:
            next(answer.iter_bytes(24_000))
        began = time.monotonic()
        assert speech_of(client, input="one").status_code == 200
        assert time.monotonic() - began < 20  # 900 words would have taken 45 s
        assert error_of(client.post("/v1/audio/speech", json=body | {"input": "one", "speed": 3}), 400)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"not a sound", "not a sound file"),
        (b"\x80\x04\x95cos\nsystem\n", "not a sound file"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a sound file"),
        (wav(1)[:30], "not a sound file"),
    ],
)
def test_a_clip_that_is_no_sound_is_refused_by_its_name(content: bytes, message: str, client: httpx2.Client) -> None:
    answer = client.post("/v1/voices", files={"files": ("../../my clip.wav", content)})
    error = error_of(answer, 400)
    assert error["message"].startswith("my clip.wav: ") and message in error["message"]
    assert "/" not in error["message"].replace("/etc", "")


def test_a_form_without_clips_or_with_a_wrong_name_is_refused(client: httpx2.Client) -> None:
    assert error_of(client.post("/v1/voices", json={}), 415)
    assert error_of(client.post("/v1/voices", data={"name": "a"}, files={"other": b"x"}), 400)["param"] == "files"
    for name, status in (("af_sky", 409), ("a b", 400), ("../a", 400), ("x" * 41, 400)):
        answer = client.post("/v1/voices", data={"name": name}, files={"files": wav(0.5)})
        assert error_of(answer, status)["param"] == "name"


def test_a_mix_of_voices_with_long_names_is_a_pack_too(studio: Studio, client: httpx2.Client) -> None:
    pack = studio.pack("af_sky")
    names = [*(f"{number}".rjust(40, "v") for number in range(7)), "file"]
    for name in names:
        studio._made[name] = MadeVoice(name, pack, 0, "af_sky", 1.0, ())
    for voice in ("+".join(names), "file"):
        for kind in ("pt", "npz", "bin"):
            answer = client.get("/v1/packs", params={"voice": voice, "format": kind})
            assert answer.status_code == 200
            assert len(answer.headers["content-disposition"]) < 200
            if kind == "npz":
                with np.load(io.BytesIO(answer.content)) as found:
                    assert found.files == [voice.replace("+", "_")]
                    np.testing.assert_allclose(found[found.files[0]], pack, rtol=1e-5, atol=1e-6)


def test_a_bug_is_answered_without_what_it_says(fakes: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    studio = fake_studio(fakes)

    def broken(*arguments: object) -> Iterator[Tensor]:
        raise RuntimeError("secret place /home/me")
        yield

    studio.say = broken  # type: ignore[method-assign, assignment]
    with served(studio) as url, httpx2.Client(base_url=url) as client:
        answer = speech_of(client)
    assert error_of(answer, 500)["code"] == "internal_error" and "secret" not in answer.text
    assert "secret place" in caplog.text
