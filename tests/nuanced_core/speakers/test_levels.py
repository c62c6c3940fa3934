"""nuanced_core.speakers.levels."""

import pytest
import torch

from nuanced_core.speakers.levels import level_speech, speech_only
from tests.nuanced_core.speakers.sounds import voice


def _tone(seconds: float, level: float) -> torch.Tensor:
    return level * 2**0.5 * torch.sin(2 * torch.pi * 200 * torch.arange(int(16_000 * seconds)) / 16_000)


def test_the_level_is_that_of_the_frames_that_are_not_silent() -> None:
    speech = _tone(1, 0.2)
    clips = torch.stack([torch.cat([_tone(1, 0.001), speech]), torch.cat([_tone(1, 0.2), 3 * speech])])
    found = level_speech(clips, -20.0)
    assert float(found[0, 16_000:].square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)  # the first second is silent
    assert float(found[1].square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)
    torch.testing.assert_close(found[0] / found[0, 16_010], clips[0] / clips[0, 16_010])


@pytest.mark.parametrize("gain", [1e-3, 0.1, 1, 100])
def test_the_result_does_not_depend_on_the_level(gain: float) -> None:
    clip = voice(120, 1.0)[None]
    torch.testing.assert_close(level_speech(gain * clip, -30.0), level_speech(clip, -30.0), rtol=1e-4, atol=1e-7)


def test_silence_stays_silence_with_a_finite_gradient() -> None:
    silence = torch.zeros(2, 8_000, requires_grad=True)
    found = level_speech(silence, -30.0)
    found.square().sum().backward()
    assert torch.equal(found, torch.zeros(2, 8_000))
    assert silence.grad is not None and silence.grad.isfinite().all()


def test_silence_around_speech_and_in_long_pauses_is_shortened() -> None:
    quiet = _tone(2, 0.001)
    speech = _tone(1, 0.2)
    found = speech_only(torch.cat([quiet, speech, quiet, speech, quiet]))
    # 0.3 s is kept on either side of speech, but for the last frame that is cut off.
    assert len(found) / 16_000 == pytest.approx(2 * (1 + 2 * 0.3), abs=0.1)
    assert float((found.abs() > 0.1).float().sum()) == float((torch.cat([speech, speech]).abs() > 0.1).float().sum())


def test_short_pauses_and_steady_noise_are_kept() -> None:
    clip = torch.cat([_tone(1, 0.2), _tone(0.5, 0.0001), _tone(1, 0.2)])
    assert torch.equal(speech_only(clip), clip)
    noisy = torch.cat([_tone(3, 0.02), _tone(1, 0.2)])
    assert torch.equal(speech_only(noisy), noisy)
