"""nuanced_core.judges.pitch on synthetic tones, noise and Kokoro's speech."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import ConfigError
from nuanced_core.judges.pitch import CrepePitch


@pytest.fixture(scope="module")
def pitch() -> CrepePitch:
    pytest.importorskip("torchcrepe", reason="the extra eval is not installed")
    return CrepePitch()


def _tone(hertz: float | np.ndarray, rate: int = 24_000) -> Tensor:
    """One second of a pulse-like tone: harmonics that fall by 6 dB per octave."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, rate)) / rate
    return torch.from_numpy(0.2 * sum(np.sin(k * phase) / k for k in range(1, 9))).float()


def _semitones(found: Tensor, hertz: float) -> float:
    """The largest difference, in semitones."""
    return float((12 * torch.log2(found / hertz)).abs().max())


@pytest.mark.parametrize("hertz", [70.0, 110.0, 164.8, 220.0, 330.0, 500.0])
def test_pitch_of_a_tone_is_within_a_third_of_a_semitone(pitch: CrepePitch, hertz: float) -> None:
    found = pitch(_tone(hertz))
    assert found.shape == (41,)
    inner = found[2:-2]  # the first and last frames are half silence
    assert (inner > 0).all()
    assert _semitones(inner, hertz) < 0.33


@pytest.mark.parametrize(
    "sound",
    [
        torch.zeros(24_000),
        0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(0)),
        1e-5 * torch.randn(24_000, generator=torch.Generator().manual_seed(1)),
    ],
    ids=["silence", "noise", "quiet noise"],
)
def test_silence_and_noise_are_unvoiced(pitch: CrepePitch, sound: Tensor) -> None:
    assert torch.equal(pitch(sound), torch.zeros(41))


@pytest.mark.parametrize("hertz", [40.0, 620.0])
def test_tones_outside_the_range_of_speaking_voices_are_unvoiced(pitch: CrepePitch, hertz: float) -> None:
    assert (pitch(_tone(hertz))[2:-2] == 0).all()


@pytest.mark.parametrize("frames", [1, 2, 40, 133])
def test_pitch_has_one_value_every_25_ms(pitch: CrepePitch, frames: int) -> None:
    assert pitch(_tone(150.0).repeat(4)[: frames * 600]).shape == (frames + 1,)


def test_pitch_values_are_aligned_with_the_audio(pitch: CrepePitch) -> None:
    time = np.arange(24_000) / 24_000
    found = pitch(_tone(np.where(time < 0.5, 120.0, 200.0)))
    assert _semitones(found[2:18], 120) < 0.33
    assert _semitones(found[23:39], 200) < 0.33
    glide = pitch(_tone(100 * 2**time))  # an octave up in a second
    expected = torch.from_numpy(100 * 2 ** (np.arange(41) / 40))
    assert _semitones(glide[3:-3], expected[3:-3]) < 0.5  # type: ignore[arg-type]


def test_silence_around_a_tone_is_unvoiced(pitch: CrepePitch) -> None:
    sound = torch.cat([torch.zeros(12_000), _tone(180.0), torch.zeros(12_000)])
    found = pitch(sound)
    assert (found[:18] == 0).all() and (found[63:] == 0).all()
    assert _semitones(found[23:58], 180) < 0.33


def test_pitch_is_deterministic_and_does_not_depend_on_the_sample_rate(pitch: CrepePitch) -> None:
    sound = _tone(140.0)
    assert torch.equal(pitch(sound), pitch(sound.clone().requires_grad_()))
    resampled = pitch(_tone(140.0, rate=16_000), 16_000)
    assert resampled.shape == (41,)
    assert (12 * torch.log2(resampled[2:-2] / pitch(sound)[2:-2])).abs().max() < 0.05


@pytest.mark.real
def test_pitch_agrees_with_kokoro_s_predicted_f0(pitch: CrepePitch, models: ModelSet) -> None:
    phonemes = "ʃi ˈoʊpənd ðə ˈoʊld dˈɔɹ"
    text = models.kokoro.encode_text([phonemes])
    for name in ("am_michael", "af_heart"):
        style = models.voices.style(name, len(phonemes))[None]
        with torch.no_grad():
            prosody = models.kokoro.prosody(text, style)
            audio = models.kokoro.speak(text, prosody, style, [0]).item(0)
        tracked, predicted = pitch(audio)[:-1], prosody.f0[0, ::2]  # two F0 values per frame
        both = (tracked > 0) & (predicted > 60)
        assert both.sum() > 15
        assert (12 * torch.log2(tracked[both] / predicted[both])).abs().median() < 0.5


def test_missing_extra_raises_config_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcrepe", None)
    with pytest.raises(ConfigError, match=r"^CREPE's pitch needs torchcrepe \(.*\); pip install '.*\[eval\]'$"):
        CrepePitch()
