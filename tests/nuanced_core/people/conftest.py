"""Made-up people: steady buzzing voices for the fakes, and stock voices in rooms and noise for the real models."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.data.cache import Cache
from nuanced_core.data.model_set import ModelSet
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.people.measures import PhonemeCounter
from tests.fakes import fake_models

# Folders of people, two of them for validation and one for the test, and the stock voices that speak for them.
PEOPLE = {
    "anna": "af_heart",
    "ben": "am_puck",
    "carla": "bf_emma",
    "felix": "am_michael",
}
SENTENCES = (
    "We walked along the river until it was too dark to see.",
    "Nobody had told her that the last train leaves at ten.",
)


def buzz(speaker: int, take: int = 0, seconds: float = 3.0) -> np.ndarray:
    """A buzzing voice with a spectrum of its own and 4 syllables a second; takes differ in pitch and noise."""
    rng = np.random.default_rng([speaker, take])
    time = np.arange(round(seconds * WHISPER_RATE)) / WHISPER_RATE
    levels = np.random.default_rng(speaker).uniform(0.02, 1, 16)
    hertz = (90 + 25 * speaker) * 2 ** (0.1 * np.sin(2 * np.pi * 1.5 * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(hertz) / WHISPER_RATE
    sound = sum(level * np.sin((k + 1) * phase) for k, level in enumerate(levels)) * (1 + np.sin(8 * np.pi * time)) / 30
    return np.asarray(sound + 1e-3 * rng.standard_normal(len(time)), np.float32)


def write(path: Path, samples: np.ndarray | Tensor, rate: int = WHISPER_RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(samples), rate)
    return path


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Fake models, in which the rate of everybody is 14 phonemes per second."""
    monkeypatch.setattr(PhonemeCounter, "rate", lambda self, audio: 14.0)
    models = fake_models(tmp_path / "voices")
    models.whisper_file.path = tmp_path / "no-whisper.pt"
    return models


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def buzzing(tmp_path: Path) -> Path:
    """Five buzzing people with three recordings each: felix is for validation, ben for the test."""
    for number, name in enumerate(("anna", "ben", "carla", "emma", "felix")):
        for take in range(3):
            write(tmp_path / "people" / name / f"{take}.flac", buzz(number, take))
    return tmp_path / "people"


@pytest.fixture(scope="package")
def speak(models: ModelSet) -> Callable[[str, str], Tensor]:
    """A function that returns a sentence in a stock voice at 16 kHz, rendered once."""
    spoken: dict[tuple[str, str], Tensor] = {}

    def speak(voice: str, sentence: str) -> Tensor:
        if (voice, sentence) not in spoken:
            phonemes = models.phonemizer(sentence)
            text = models.kokoro.encode_text([phonemes])
            style = models.voices.style(voice, len(phonemes))[None]
            with torch.no_grad():
                audio = models.kokoro.speak(text, models.kokoro.prosody(text, style), style, [0]).item(0)
            spoken[voice, sentence] = resample(audio, KOKORO_RATE, WHISPER_RATE)
        return spoken[voice, sentence]

    return speak


@pytest.fixture(scope="package")
def recorded(speak: Callable[[str, str], Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four people, one recording each, in a room and noise, with silence before it."""
    folder = tmp_path_factory.mktemp("recorded")
    for number, (name, voice) in enumerate(PEOPLE.items()):
        audio = speak(voice, SENTENCES[number % 2])
        room = degraded(degraded(audio, WHISPER_RATE, "room", number), WHISPER_RATE, "snr20", number)
        write(folder / name / "one.flac", torch.cat([torch.zeros(WHISPER_RATE), 0.3 * room]))
    return folder
