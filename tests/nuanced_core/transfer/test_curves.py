"""nuanced_core.transfer.curves: F0 and energy as in a recording, at a voice's own mean."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.transfer.curves import (
    SourceCurves,
    VoiceCurves,
    follow_energy,
    follow_f0,
    hear_curves,
    source_times,
)

FRAMES = 80  # 2 s
TIME = torch.arange(FRAMES) / 40
# One octave up within 2 s, from 100 Hz; and 20 dB up.
SOURCE = SourceCurves(100 * 2 ** (TIME / 2), -30 + 10 * TIME, torch.ones(FRAMES, dtype=torch.bool))
VOICE = VoiceCurves(math.log2(220), 6.0, 0.8)
TIMES = source_times([(0.0, 0.0), (2.0, 2.0)], 2 * FRAMES)


def _predicted() -> Tensor:
    """A flat F0 of 220 Hz, unvoiced at both ends and in the middle."""
    f0 = torch.full((2 * FRAMES,), 220.0)
    f0[:10] = f0[70:90] = f0[-10:] = 10.0
    return f0


def test_f0_follows_the_source_at_the_voice_s_mean_and_stays_unvoiced() -> None:
    shift = VOICE.f0_mean - SOURCE.f0_mean
    found = follow_f0(_predicted(), SOURCE, TIMES, shift, 1.0)
    voiced = _predicted() > 40
    assert torch.equal(found > 40, voiced)
    octaves = found[voiced].log2()
    expected = torch.from_numpy(TIMES).float()[voiced] / 2 + math.log2(100) + shift
    torch.testing.assert_close(octaves, expected, atol=0.03, rtol=0)
    assert float(octaves.mean()) == pytest.approx(VOICE.f0_mean, abs=0.02)


def test_half_a_share_is_half_way_in_log_f0() -> None:
    whole, half = (follow_f0(_predicted(), SOURCE, TIMES, 1.0, share).log2() for share in (1.0, 0.5))
    voiced = _predicted() > 40
    torch.testing.assert_close(half[voiced], (whole[voiced] + math.log2(220)) / 2, atol=1e-4, rtol=0)
    assert torch.equal(follow_f0(_predicted(), SOURCE, TIMES, 1.0, 0.0), _predicted())


def test_f0_moves_by_an_octave_at_most_and_ignores_a_single_error() -> None:
    assert float(follow_f0(_predicted(), SOURCE, TIMES, 5.0, 1.0).max()) == pytest.approx(440, rel=1e-3)
    f0 = torch.full((FRAMES,), 200.0)
    f0[40] = 400.0  # an octave error
    found = follow_f0(_predicted(), SourceCurves(f0, SOURCE.level, SOURCE.loud), TIMES, 0.0, 1.0)
    assert float(found.max()) == pytest.approx(200, rel=0.01)


def test_without_a_voiced_source_f0_is_as_predicted() -> None:
    whisper = SourceCurves(torch.zeros(FRAMES), SOURCE.level, SOURCE.loud)
    assert math.isnan(whisper.f0_mean)
    assert torch.equal(follow_f0(_predicted(), whisper, TIMES, 0.0, 1.0), _predicted())


def test_energy_follows_in_units_of_its_own_deviation() -> None:
    predicted = torch.full((2 * FRAMES,), 6.0, dtype=torch.float64)
    level = SOURCE.level_statistics()
    assert level == pytest.approx((-20.1, 5.8), abs=0.6)
    found = follow_energy(predicted, SOURCE, TIMES, VOICE, level, 1.0)
    inner = slice(30, -30)
    standard = (-30 + 10 * torch.from_numpy(TIMES) - level[0]) / level[1]
    torch.testing.assert_close(found[inner], 6.0 + 0.8 * standard[inner], atol=0.1, rtol=0)
    half = follow_energy(predicted, SOURCE, TIMES, VOICE, level, 0.5)
    torch.testing.assert_close(half[inner] - 6, (found[inner] - 6) / 2, atol=1e-9, rtol=0)


def test_energy_of_silence_stays() -> None:
    predicted = torch.full((2 * FRAMES,), 6.0)
    predicted[60:100] = -9.0
    loud = SOURCE.loud.clone()
    loud[60:] = False
    found = follow_energy(predicted, SourceCurves(SOURCE.f0, SOURCE.level, loud), TIMES, VOICE, (-20, 5), 1.0)
    torch.testing.assert_close(found[70:90], predicted[70:90])
    torch.testing.assert_close(found[-20:], predicted[-20:])


def test_times_follow_the_words_and_go_on_at_the_same_pace() -> None:
    found = source_times([(0.5, 10.0), (1.0, 11.0), (1.0, 11.5), (1.5, 11.75)], 160)
    at = [round(seconds * 80) for seconds in (0.25, 0.75, 1.25, 1.9)]
    np.testing.assert_allclose(found[at], [9.75, 10.5, 11.625, 12.15], atol=0.02)
    assert (np.diff(found) >= 0).all()


def test_curves_of_a_sound_have_its_pitch_and_its_level() -> None:
    time = torch.arange(32_000) / 16_000
    tone = sum(torch.sin(2 * math.pi * 150 * n * time) / n for n in range(1, 6))
    assert isinstance(tone, Tensor)
    quiet, loud = hear_curves(0.01 * tone), hear_curves(0.1 * tone)
    joined = SourceCurves.joined([quiet, loud])
    assert len(joined.f0) == len(joined.level) == len(joined.loud) == 160
    assert 2**joined.f0_mean == pytest.approx(150, rel=0.01)
    assert float((loud.level - quiet.level).median()) == pytest.approx(20, abs=0.01)


def test_a_voice_s_means_are_those_of_what_is_voiced_and_loud() -> None:
    energy = torch.full((160,), 6.0)
    energy[:40] = -9.0
    voice = VoiceCurves.of([_predicted(), _predicted()], [energy, energy])
    assert voice.f0_mean == pytest.approx(math.log2(220))
    assert voice.energy_mean == pytest.approx(6.0)
    assert voice.energy_std == pytest.approx(0.0, abs=1e-6)
