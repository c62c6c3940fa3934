import pytest
import torch

from nuanced_core.model_set import ModelSet

pytestmark = pytest.mark.real


def test_the_last_layer_is_whispers_own_encoding(models: ModelSet) -> None:
    from whisper.audio import log_mel_spectrogram

    audio = torch.randn(30 * 16_000, generator=torch.Generator().manual_seed(0)) * 0.05
    states = models.whisper(audio)
    assert states.shape == (5, 1500, 384)
    with torch.no_grad():
        expected = models.whisper.encoder(log_mel_spectrogram(audio)[None])[0]
    torch.testing.assert_close(states[-1], expected, atol=1e-3, rtol=1e-3)


def test_a_long_clip_is_heard_in_segments_not_stretched(models: ModelSet) -> None:
    audio = torch.randn(31 * 16_000, generator=torch.Generator().manual_seed(1)) * 0.05
    states = models.whisper(audio)
    assert states.shape[1] == 31 * 50
    torch.testing.assert_close(states[:, :1500], models.whisper(audio[: 30 * 16_000]))
    torch.testing.assert_close(states[:, 1500:], models.whisper(audio[30 * 16_000 :]))


def test_frames_are_20_ms_rounded_up(models: ModelSet) -> None:
    assert models.whisper(torch.zeros(321)).shape[1] == 2
