"""WhisperFeatures compared with Whisper's own encoder."""

import pytest
import torch

from nuanced_core.data.model_set import ModelSet

pytestmark = pytest.mark.real


def test_last_layer_matches_whispers_encoder(models: ModelSet) -> None:
    from whisper.audio import log_mel_spectrogram

    audio = torch.randn(30 * 16_000, generator=torch.Generator().manual_seed(0)) * 0.05
    states = models.whisper._encode_segment(audio)  # Whisper's own encoder requires 30 s
    assert states.shape == (5, 1500, 384)
    with torch.no_grad():
        expected = models.whisper.encoder(log_mel_spectrogram(audio)[None])[0]
    torch.testing.assert_close(states[-1], expected, atol=1e-3, rtol=1e-3)


def test_long_clip_is_encoded_in_equal_segments(models: ModelSet) -> None:
    audio = torch.randn(9 * 16_000, generator=torch.Generator().manual_seed(1)) * 0.05
    states = models.whisper(audio)
    assert states.shape[1] == 9 * 50
    for start in range(0, 9, 3):
        alone = models.whisper(audio[start * 16_000 : (start + 3) * 16_000])
        torch.testing.assert_close(states[:, start * 50 : (start + 3) * 50], alone)


def test_number_of_frames_is_rounded_up(models: ModelSet) -> None:
    for samples in (1, 320, 321, 64_000, 64_001, 100_007):
        assert models.whisper(torch.zeros(samples)).shape[1] == -(-samples // 320)
