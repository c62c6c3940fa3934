"""nuanced_core.speech.voices: pooling of clips, and the refinement, with the fakes."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nuanced_core.config.settings import RunConfig
from nuanced_core.encoder.recording import pooled_recording
from nuanced_core.refinement.person import Judge
from nuanced_core.speech import voices
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.voices import pooled_clips, refine_voice, voice_from_clips
from tests.fakes import LivelyKokoro, random_encoder
from tests.nuanced_core.people.conftest import buzz


@pytest.fixture
def speech(fakes: SimpleNamespace, tiny_run: RunConfig) -> SpeechModels:
    """The fakes with a random encoder that hears a speaker embedding and the pitch."""
    features = tiny_run.features.model_copy(update={"speaker": "campplus", "pitch": True})
    run = tiny_run.model_copy(update={"features": features})
    fakes.kokoro = LivelyKokoro()
    return SpeechModels(random_encoder(fakes, run).eval(), fakes, run)


def clip(speaker: int = 1, take: int = 0, seconds: float = 4.0) -> Tensor:
    return torch.from_numpy(buzz(speaker, take, seconds))


def test_the_voice_of_one_clip_is_the_encoder_s_pack(speech: SpeechModels) -> None:
    voice = voice_from_clips(speech, [clip()])
    assert voice.pack.shape == (510, 1, 256) and voice.pack.dtype == torch.float32
    with torch.no_grad():
        expected = speech.encoder.pack_of(pooled_recording(speech.encoder, speech.models, clip()))
    torch.testing.assert_close(voice.pack, expected)
    assert voice.notes == () and voice.seconds == pytest.approx(4, abs=0.3)
    assert not torch.equal(voice.pack[0], voice.pack[100])


def test_clips_are_pooled_by_their_seconds(speech: SpeechModels) -> None:
    clips = [clip(1, 0, 4), clip(1, 1, 8)]
    each = [pooled_recording(speech.encoder, speech.models, one)[0] for one in clips]
    pooled = pooled_clips(speech, clips, [4.0, 8.0])[0]
    features = slice(0, -194)  # before 192 channels of CAM++ and 2 of pitch
    torch.testing.assert_close(pooled[features], (each[0] + 2 * each[1])[features] / 3)
    torch.testing.assert_close(pooled[-2:], (each[0] + 2 * each[1])[-2:] / 3)
    mean = torch.nn.functional.normalize((each[0] + 2 * each[1])[-194:-2], dim=0)
    torch.testing.assert_close(pooled[-194:-2], mean * 192**0.5)
    torch.testing.assert_close(pooled_clips(speech, clips[:1], [4.0])[0], each[0])


@pytest.mark.parametrize("better", [True, False])
def test_the_better_voice_is_kept(speech: SpeechModels, monkeypatch: pytest.MonkeyPatch, better: bool) -> None:
    calls: list[int] = []

    def embed(audio: Tensor, rate: int) -> Tensor:
        calls.append(rate)
        similarity = {1: 1.0, 2: 0.5, 3: 0.75 if better else 0.25}[len(calls)]
        return torch.tensor([similarity, (1 - similarity**2) ** 0.5])

    monkeypatch.setattr(voices, "load_sentences", lambda split: ["abcdefghij", "bcdefghijk", "cdefghijkl", "defghijkl"])
    voice = voice_from_clips(speech, [clip()])
    refined = refine_voice(speech, voice, 1 / 600, Judge("a judge", embed, ("campplus",)))
    assert torch.equal(refined.pack, voice.pack) == (not better)
    assert "1.5 s that it did not hear, by a judge" in refined.refinement or "1.2 s" in refined.refinement
    assert ("0.500 before, 0.750 after" if better else "0.500 before, 0.250 after") in refined.refinement
    assert ("the refined voice is kept" in refined.refinement) == better
    assert refined.notes == voice.notes
