import pytest
import torch

from nuanced_core.data.model_set import ModelSet

pytestmark = pytest.mark.real


def test_the_last_layer_is_whispers_own_encoding(models: ModelSet) -> None:
    from whisper.audio import log_mel_spectrogram

    audio = torch.randn(30 * 16_000, generator=torch.Generator().manual_seed(0)) * 0.05
    states = models.whisper._segment(audio)  # all of the 30 s that Whisper's own encoder insists on
    assert states.shape == (5, 1500, 384)
    with torch.no_grad():
        expected = models.whisper.encoder(log_mel_spectrogram(audio)[None])[0]
    torch.testing.assert_close(states[-1], expected, atol=1e-3, rtol=1e-3)


def test_a_long_clip_is_heard_in_equal_segments(models: ModelSet) -> None:
    audio = torch.randn(9 * 16_000, generator=torch.Generator().manual_seed(1)) * 0.05
    states = models.whisper(audio)
    assert states.shape[1] == 9 * 50
    for start in range(0, 9, 3):
        alone = models.whisper(audio[start * 16_000 : (start + 3) * 16_000])
        torch.testing.assert_close(states[:, start * 50 : (start + 3) * 50], alone)


def test_frames_are_20_ms_rounded_up(models: ModelSet) -> None:
    for samples in (1, 320, 321, 64_000, 64_001, 100_007):
        assert models.whisper(torch.zeros(samples)).shape[1] == -(-samples // 320)
