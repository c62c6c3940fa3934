"""nuanced_core.judges.panel with judges whose answers are known."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.errors import ConfigError
from nuanced_core.judges import panel
from nuanced_core.judges.panel import JudgePanel, Sound, load_panel
from nuanced_core.judges.quality import Quality


class _Transcriber:
    def __init__(self, *transcripts: str) -> None:
        self.transcripts = [*transcripts]

    def transcribe(self, audio: Tensor, rate: int) -> str:
        assert rate == 24_000
        return self.transcripts.pop(0)


def _length(audio: Tensor, rate: int) -> Tensor:
    return torch.tensor([len(audio) / rate, 0.0])


def test_hear_returns_embeddings_and_the_median_of_voiced_frames() -> None:
    judges = JudgePanel({"a": _length}, {}, lambda audio, rate: torch.tensor([0.0, 128.0, 256.0, 512.0, 0.0]))
    sound = judges.hear(torch.ones(32_000), 16_000)
    assert sound.embeddings["a"].tolist() == [2, 0]
    assert sound.f0 == 8
    assert torch.tensor([sound.word_errors, sound.dnsmos, sound.rate]).isnan().all()
    unvoiced = JudgePanel({}, {}, lambda audio, rate: torch.zeros(5))
    assert torch.tensor(unvoiced.hear(torch.ones(9), 16_000).f0).isnan()


def test_judge_hears_the_sentences_together_and_their_words_one_by_one() -> None:
    heard: list[int] = []

    def quality(audio: Tensor, rate: int) -> Quality:
        heard.append(len(audio))
        return Quality(3.5, 1, 2, 3)

    words = _Transcriber("a red door", "green hill far")
    judges = JudgePanel({"a": _length}, {}, None, words, quality)
    sound = judges.judge([torch.ones(24_000), torch.ones(12_000)], ["A red door.", "Green hills."])
    assert sound.embeddings["a"][0] == 1.5
    assert heard == [36_000]
    assert sound.dnsmos == 3.5
    assert sound.word_errors == pytest.approx(2 / 5)  # of all words together
    assert torch.tensor(sound.f0).isnan()


def test_a_sound_is_the_same_after_it_was_kept() -> None:
    sound = Sound({"b": torch.rand(3), "a": torch.rand(2)}, 7.25, word_errors=0.1, dnsmos=3.0)
    found = Sound.from_tensors(sound.to_tensors())
    assert {name: x.tolist() for name, x in found.embeddings.items()} == {
        name: x.tolist() for name, x in sound.embeddings.items()
    }
    assert (found.f0, found.word_errors, found.dnsmos) == (7.25, 0.1, 3.0)
    assert torch.tensor(found.rate).isnan()


def test_load_panel_leaves_out_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: Any) -> None:
        raise ConfigError("needs onnxruntime; pip install 'nuanced-speech[eval]'")

    for name in ("DVector", "CrepePitch", "DNSMOS"):
        monkeypatch.setattr(panel, name, missing)
    with caplog.at_level(logging.WARNING):
        found = load_panel({"campplus": _length}, {"campplus": "1", "words": "2"}, Path("whisper.pt"))
    assert [record.getMessage().startswith("left out: needs onnxruntime") for record in caplog.records] == [True] * 3
    assert list(found.embedders) == ["campplus"] and found.track_pitch is None and found.quality is None
    assert found.versions == {"campplus": "1", "words": "2"}


def test_load_panel_adds_the_judges_that_train_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []

    def make(source: str = "") -> SimpleNamespace:
        sources.append(source)
        return SimpleNamespace(name=f"version {len(sources)}")

    for name in ("DVector", "CrepePitch", "DNSMOS"):
        monkeypatch.setattr(panel, name, make)
    found = load_panel({"campplus": _length}, {"campplus": "1"}, Path("whisper.pt"), source="hub")
    assert list(found.embedders) == ["campplus", "dvector"]
    assert sources[0] == "hub"
    assert found.versions == {"campplus": "1", "dvector": "version 1", "pitch": "version 2", "quality": "version 3"}
