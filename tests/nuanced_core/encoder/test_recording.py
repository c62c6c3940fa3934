"""nuanced_core.encoder.recording against the pooling of whole clips, with fake models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.encoder import recording
from nuanced_core.encoder.recording import pooled_recording, recording_speaker
from nuanced_core.errors import AudioError
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.hearing.speaker_features import speaker_features
from tests.fakes import FakeSpeakers, FakeWhisper
from tests.nuanced_core.encoder.small_encoders import small_encoder

RATE = 16_000


@pytest.fixture
def models() -> Any:
    speakers = FakeSpeakers()
    return SimpleNamespace(whisper=FakeWhisper(), speakers=speakers, speaker_encoder=speakers.encoder)


@pytest.fixture
def audio() -> Tensor:
    """40 s of a tone of 200 Hz with overtones and some noise."""
    time = torch.arange(40 * RATE) / RATE
    tone = torch.stack([torch.sin(2 * torch.pi * 200 * n * time) / n for n in range(1, 6)]).sum(dim=0)
    return 0.1 * tone + 0.01 * torch.randn(len(time), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("speaker", ["none", "campplus", "all"])
@pytest.mark.parametrize("pitch", [False, True])
def test_pooled_recording_is_that_of_the_whole_clip(models: Any, audio: Tensor, speaker: str, pitch: bool) -> None:
    encoder = small_encoder(speaker=speaker, pitch=pitch)
    features = models.whisper(audio, encoder.config.layers)[None]
    names = encoder.config.features.speaker_encoders
    parts = {name: models.speaker_encoder(name).embed(audio, RATE) for name in names}
    parts["pitch"] = clip_pitch(audio, RATE)
    heard = speaker_features(encoder.config.features, parts)[None] if names or pitch else None
    expected = encoder.pooled(features, torch.ones(1, features.shape[2], dtype=torch.bool), heard)
    found = pooled_recording(encoder, models, audio)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (1, expected.shape[1])
    assert not found.requires_grad


def test_only_what_the_encoder_reads_is_computed(models: Any, audio: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "clip_pitch", lambda *_: pytest.fail("pitch is not asked for"))
    pooled_recording(small_encoder(), models, audio)
    assert models.speakers.used == {}
    pooled_recording(small_encoder(speaker="resemblyzer"), models, audio)
    assert list(models.speakers.used) == ["resemblyzer"]


def test_pitch_is_tracked_in_the_first_minute(models: Any, audio: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def tracked(samples: Tensor, rate: int) -> Tensor:
        heard.append(len(samples))
        return clip_pitch(samples[:RATE], rate)

    monkeypatch.setattr(recording, "clip_pitch", tracked)
    features = small_encoder(pitch=True).config.features
    found = recording_speaker(features, models, audio.repeat(3))
    assert heard == [60 * RATE]
    assert found is not None and found.shape == (1, 2)


def test_an_error_of_a_speaker_encoder_is_passed_on(audio: Tensor) -> None:
    def embed(audio: Tensor, rate: int) -> Tensor:
        raise AudioError("is silent")

    models: Any = SimpleNamespace(whisper=FakeWhisper(), speaker_encoder=lambda name: SimpleNamespace(embed=embed))
    with pytest.raises(AudioError, match="is silent"):
        pooled_recording(small_encoder(speaker="campplus"), models, audio)
