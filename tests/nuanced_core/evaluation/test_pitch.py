import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import ConfigError
from nuanced_core.evaluation.pitch import CrepePitch


@pytest.fixture(scope="module")
def pitch() -> CrepePitch:
    pytest.importorskip("torchcrepe", reason="the extra eval is not installed")
    return CrepePitch()


def _tone(hertz: float | np.ndarray, rate: int = 24_000) -> Tensor:
    """A second of a pulse-like tone: harmonics that fall by 6 dB an octave."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, rate)) / rate
    return torch.from_numpy(0.2 * sum(np.sin(k * phase) / k for k in range(1, 9))).float()


def _semitones(found: Tensor, hertz: float) -> float:
    """The largest difference."""
    return float((12 * torch.log2(found / hertz)).abs().max())


@pytest.mark.parametrize("hertz", [70.0, 110.0, 164.8, 220.0, 330.0, 500.0])
def test_the_pitch_of_a_tone_is_found_to_a_third_of_a_semitone(pitch: CrepePitch, hertz: float) -> None:
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
def test_silence_and_noise_have_no_pitch(pitch: CrepePitch, sound: Tensor) -> None:
    assert torch.equal(pitch(sound), torch.zeros(41))


@pytest.mark.parametrize("hertz", [40.0, 620.0])
def test_what_no_speaking_voice_can_be_is_no_pitch(pitch: CrepePitch, hertz: float) -> None:
    assert (pitch(_tone(hertz))[2:-2] == 0).all()


@pytest.mark.parametrize("frames", [1, 2, 40, 133])
def test_there_is_a_value_each_25_ms(pitch: CrepePitch, frames: int) -> None:
    assert pitch(_tone(150.0).repeat(4)[: frames * 600]).shape == (frames + 1,)


def test_values_are_where_the_sound_is(pitch: CrepePitch) -> None:
    time = np.arange(24_000) / 24_000
    found = pitch(_tone(np.where(time < 0.5, 120.0, 200.0)))
    assert _semitones(found[2:18], 120) < 0.33
    assert _semitones(found[23:39], 200) < 0.33
    glide = pitch(_tone(100 * 2**time))  # an octave up in a second
    expected = torch.from_numpy(100 * 2 ** (np.arange(41) / 40))
    assert _semitones(glide[3:-3], expected[3:-3]) < 0.5  # type: ignore[arg-type]


def test_voice_stands_beside_silence(pitch: CrepePitch) -> None:
    sound = torch.cat([torch.zeros(12_000), _tone(180.0), torch.zeros(12_000)])
    found = pitch(sound)
    assert (found[:18] == 0).all() and (found[63:] == 0).all()
    assert _semitones(found[23:58], 180) < 0.33


def test_the_same_sound_has_the_same_pitch_at_any_rate(pitch: CrepePitch) -> None:
    sound = _tone(140.0)
    assert torch.equal(pitch(sound), pitch(sound.clone().requires_grad_()))
    slower = pitch(_tone(140.0, rate=16_000), 16_000)
    assert slower.shape == (41,)
    assert (12 * torch.log2(slower[2:-2] / pitch(sound)[2:-2])).abs().max() < 0.05


@pytest.mark.real
def test_it_agrees_with_what_kokoro_meant_to_sing(pitch: CrepePitch, models: ModelSet) -> None:
    phonemes = "ʃi ˈoʊpənd ðə ˈoʊld dˈɔɹ"
    text = models.kokoro.encode_text([phonemes])
    for name in ("am_michael", "af_heart"):
        style = models.voices.style(name, len(phonemes))[None]
        with torch.no_grad():
            prosody = models.kokoro.prosody(text, style)
            audio = models.kokoro.speak(text, prosody, style, [0]).item(0)
        heard, meant = pitch(audio)[:-1], prosody.f0[0, ::2]  # two values a frame
        both = (heard > 0) & (meant > 60)
        assert both.sum() > 15
        assert (12 * torch.log2(heard[both] / meant[both])).abs().median() < 0.5


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcrepe", None)
    with pytest.raises(ConfigError, match=r"^CREPE's pitch needs torchcrepe \(.*\); pip install '.*\[eval\]'$"):
        CrepePitch()
