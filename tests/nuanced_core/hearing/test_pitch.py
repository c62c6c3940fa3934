"""nuanced_core.hearing.pitch on synthetic tones, and on Kokoro's speech beside CREPE."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.data.model_set import ModelSet
from nuanced_core.hearing import pitch as pitch_module
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.hearing.pitch import loud_frames, pitch_statistics, track_pitch
from nuanced_core.judges.pitch import CrepePitch


def _tone(hertz: float | np.ndarray, seconds: float = 1.0, rate: int = WHISPER_RATE, lowest: int = 1) -> Tensor:
    """A pulse-like tone: harmonics from number ``lowest`` that fall by 6 dB per octave."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, int(seconds * rate))) / rate
    return torch.from_numpy(0.2 * sum(np.sin(k * phase) / k for k in range(lowest, 13))).float()


def _noise(seconds: float, level: float, seed: int = 0) -> Tensor:
    return level * torch.randn(int(seconds * WHISPER_RATE), generator=torch.Generator().manual_seed(seed))


def _semitones(found: Tensor, hertz: Tensor | float) -> float:
    """The largest difference, in semitones."""
    return float((12 * torch.log2(found / hertz)).abs().max())


@pytest.mark.parametrize("hertz", [60.0, 82.4, 110.0, 164.8, 220.0, 330.0, 500.0])
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_pitch_of_a_tone_is_exact(hertz: float, rate: int) -> None:
    found = track_pitch(_tone(hertz, rate=rate), rate)
    assert found.shape == (41,)
    assert (found[3:-3] > 0).all()
    # Of a high tone, few harmonics are below the limit.
    assert _semitones(found[3:-3], hertz) < (0.1 if hertz < 400 else 0.3)


@pytest.mark.parametrize("hertz", [90.0, 140.0, 210.0])
def test_a_missing_fundamental_is_found(hertz: float) -> None:
    found = track_pitch(_tone(hertz, lowest=math.ceil(300 / hertz)), WHISPER_RATE)
    assert _semitones(found[3:-3], hertz) < 0.2


def test_a_glide_is_followed_at_each_frame() -> None:
    hertz = 120 * 2 ** (0.4 * np.sin(2 * np.pi * np.arange(2 * WHISPER_RATE) / WHISPER_RATE))
    found = track_pitch(_tone(hertz, 2.0), WHISPER_RATE)
    expected = torch.from_numpy(hertz[::400].copy()).float()
    assert _semitones(found[3:-4], expected[3:-3]) < 0.7


@pytest.mark.parametrize(
    "sound", [torch.zeros(16_000), _noise(1.0, 0.1), _noise(1.0, 1e-5, 1)], ids=["silence", "noise", "quiet noise"]
)
def test_silence_and_noise_are_unvoiced(sound: Tensor) -> None:
    assert float((track_pitch(sound, WHISPER_RATE) > 0).float().mean()) < 0.1
    assert all(math.isnan(value) for value in pitch_statistics(torch.zeros(41)))


def test_the_hum_of_the_mains_between_words_is_no_pitch() -> None:
    voice = torch.cat([_tone(200.0), torch.zeros(WHISPER_RATE), _tone(200.0)])
    hum = 0.02 * torch.sin(2 * torch.pi * 60 * torch.arange(len(voice)) / WHISPER_RATE)
    found = track_pitch(voice + hum + _noise(3.0, 1e-4), WHISPER_RATE)
    assert (found[45:75] == 0).all() and (found[5:35] > 0).all()
    assert float(pitch_statistics(found)[0]) == pytest.approx(math.log2(200), abs=0.01)
    loud = loud_frames(voice + hum + _noise(3.0, 1e-4))
    assert loud[5:35].all() and not loud[45:75].any()


def test_a_few_octave_errors_of_the_first_pass_are_corrected() -> None:
    # Of a tone with every second period a little weaker, the double period correlates as well.
    time = np.arange(3 * WHISPER_RATE)
    sound = _tone(150.0, 3.0) * torch.from_numpy(1 + 0.05 * np.sign(np.sin(2 * np.pi * 75 * time / WHISPER_RATE)))
    found = track_pitch(sound.float(), WHISPER_RATE)
    assert _semitones(found[found > 0], 150.0) < 0.5 and float((found > 0).float().mean()) > 0.9


def test_level_does_not_matter_and_long_clips_are_tracked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = torch.cat([_tone(130.0), _noise(0.5, 0.01), _tone(180.0)])
    found = track_pitch(sound, WHISPER_RATE)
    torch.testing.assert_close(track_pitch(0.01 * sound, WHISPER_RATE), found, rtol=1e-3, atol=0)
    monkeypatch.setattr(pitch_module, "BLOCK", 7)
    torch.testing.assert_close(track_pitch(sound, WHISPER_RATE), found, rtol=1e-5, atol=0)


def test_statistics_are_those_of_the_voiced_frames_and_differentiable() -> None:
    hertz = torch.tensor([0.0, 100.0, 110.0, 0.0, 140.0, 121.0, 260.0], dtype=torch.float64, requires_grad=True)
    octaves = np.log2([100.0, 110.0, 140.0, 121.0, 260.0])
    median, spread = pitch_statistics(hertz)
    low, high = np.quantile(octaves, [0.16, 0.84])
    assert float(median.detach()) == pytest.approx(np.median(octaves))
    assert float(spread.detach()) == pytest.approx((high - low) / 2)
    (gradient,) = torch.autograd.grad(median, hertz)
    assert gradient.nonzero().tolist() == [[5]]
    assert float(gradient[5]) == pytest.approx(1 / (121 * math.log(2)))


@pytest.mark.parametrize(("condition", "tolerance"), [("clean", 0.5), ("telephone", 1.0), ("room", 1.0)])
@pytest.mark.parametrize("voice", ["af_heart", "am_puck"])
def test_the_median_of_a_voice_is_that_of_crepe_and_survives_a_telephone(
    models: ModelSet, spoken_voices: dict[str, Tensor], voice: str, condition: str, tolerance: float
) -> None:
    pytest.importorskip("torchcrepe", reason="the extra eval is not installed")
    audio = resample(spoken_voices[voice], KOKORO_RATE, WHISPER_RATE)
    crepe = CrepePitch()(audio, WHISPER_RATE)
    crepe = torch.where(loud_frames(audio)[: len(crepe)], crepe, 0.0)
    heard = audio if condition == "clean" else degraded(audio, WHISPER_RATE, condition, 0)
    found = track_pitch(heard, WHISPER_RATE)
    assert 12 * float((pitch_statistics(found)[0] - pitch_statistics(crepe)[0]).abs()) < tolerance
