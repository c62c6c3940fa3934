"""A server on loopback in a thread, with fakes or with the real models, and what they are asked with."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import torch
from torch import Tensor

pytest.importorskip("starlette", reason="the extra serve is not installed")

from nuanced_core.audio import write_audio
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.serving.app import make_app
from nuanced_core.serving.guard import Access
from nuanced_core.serving.server import listen, make_server
from nuanced_core.serving.studio import Studio
from nuanced_core.serving.work import Limits
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.speaking import Speaker

LOOPBACK = "127.0.0.1"
SHIPPED = Path(__file__).parents[3] / "models" / "default"


class FakeSpeaker:
    """Fake ``Speaker``: half a second of a tone for each word."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds  # that a word takes
        self.begun = 0  # texts
        self.spoken = 0  # words
        self.gate = threading.Event()  # without it, only the first word of a text is spoken
        self.gate.set()

    def say(self, text: str, pack: Tensor, *, speed: float = 1.0) -> Iterator[Tensor]:
        self.begun += 1
        for number, _ in enumerate(text.split()):
            assert number == 0 or self.gate.wait(30)
            time.sleep(self.seconds)
            self.spoken += 1
            yield torch.sin(torch.arange(12_000) / 20) / 2


@contextmanager
def served(studio: Studio, limits: Limits | None = None, **access: Any) -> Iterator[str]:
    """Serve a studio until the block ends; yield the address."""
    limits = limits or Limits()
    with listen(LOOPBACK, 0) as listener:
        server = make_server(make_app(studio, Access(LOOPBACK, **access), limits, "mine"), limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def studio(fakes: SimpleNamespace) -> Studio:
    return fake_studio(fakes)


def fake_studio(fakes: SimpleNamespace, seconds: float = 0.0, limits: Limits | None = None) -> Studio:
    """A studio that speaks without models; a word takes ``seconds``."""
    made = Studio(SimpleNamespace(models=fakes), limits or Limits())  # type: ignore[arg-type]
    made._speaker = FakeSpeaker(seconds)  # type: ignore[assignment]
    return made


def speaker_of(studio: Studio) -> FakeSpeaker:
    """The fake speaker of a fake studio."""
    assert isinstance(studio._speaker, FakeSpeaker)
    return studio._speaker


@pytest.fixture
def client(studio: Studio) -> Iterator[httpx2.Client]:
    with served(studio) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error of a response, which has the form of OpenAI's."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def speech_of(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    """Ask for speech."""
    body = {"model": "tts-1", "input": "Red door.", "voice": "af_sky", "response_format": "wav"} | fields
    return client.post("/v1/audio/speech", json=body)


@pytest.fixture(scope="session")
def speech(models: ModelSet) -> SpeechModels:
    """The shipped encoder with the real models."""
    run = json.loads((SHIPPED / "config.json").read_text())["run"]
    return SpeechModels(StyleEncoder.from_pretrained(SHIPPED), models, validate(RunConfig, run, "shipped"))


@pytest.fixture(scope="session")
def clip(speech: SpeechModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file of 4 s in which a stock voice speaks."""
    file = tmp_path_factory.mktemp("clip") / "fable.wav"
    text = "The old harbour was quiet, and nobody saw the boat leave."
    write_audio(file, torch.cat([*Speaker(speech).say(text, speech.models.voices.pack("bm_fable")[:, None])]))
    return file


@pytest.fixture(scope="session")
def real(speech: SpeechModels) -> Iterator[str]:
    """The address of a server with the real models."""
    with served(Studio(speech, Limits())) as url:
        yield url
