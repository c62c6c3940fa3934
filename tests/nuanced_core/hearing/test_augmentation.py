"""Augmentation and fixed degradations: levels, spectra, reverberation, length, delay and reproducibility."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from nuanced_core.config.settings import Augment
from nuanced_core.errors import ConfigError
from nuanced_core.hearing import augmentation
from nuanced_core.hearing.augmentation import DEGRADATIONS, augmented, degraded

OFF = Augment(gain_db=0, equaliser_db=0, noise=0, reverb=0, codec=0, band_limit=0)
STEPS = {
    "gain": {"gain_db": 6.0},
    "equaliser": {"equaliser_db": 6.0},
    "noise": {"noise": 1.0},
    "reverb": {"reverb": 1.0},
    "codec": {"codec": 1.0},
    "band_limit": {"band_limit": 1.0},
}
ALL = Augment(noise=1, reverb=1, codec=1, band_limit=1)


def _only(step: str) -> Augment:
    return OFF.model_copy(update=STEPS[step])


def _clip(rate: int = 16000, seconds: float = 1.0) -> Tensor:
    """Noise with the spectral slope and the syllable rate of speech; it has quiet parts but no silence."""
    rng = np.random.default_rng(5)
    time = np.arange(int(rate * seconds)) / rate
    sound = scipy.signal.lfilter([1], [1, -0.9], rng.standard_normal(len(time)))
    sound *= 0.1 + np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)
    return torch.from_numpy(0.5 * sound / np.abs(sound).max()).float()


def _white(rate: int, seconds: float = 4.0) -> Tensor:
    rng = np.random.default_rng(6)
    return torch.from_numpy(0.1 * rng.standard_normal(int(rate * seconds))).float()


def _snr_db(clean: Tensor, noisy: Tensor) -> float:
    return float(10 * torch.log10(clean.double().square().sum() / (noisy - clean).double().square().sum()))


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def _gain_db(before: Tensor, after: Tensor, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies and the change of power there in dB."""
    hertz, power = scipy.signal.welch(before.double().numpy(), rate, nperseg=2048)
    _, changed = scipy.signal.welch(after.double().numpy(), rate, nperseg=2048)
    return hertz, 10 * np.log10(changed / power + 1e-12)


def _measured_rt60(response: np.ndarray, rate: int) -> float:
    """Measure RT60 by Schroeder's backward integration, with a line fitted from -5 to -25 dB (ISO 3382)."""
    energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    decay_db = 10 * np.log10(energy / energy[0] + 1e-15)
    fitted = np.flatnonzero((decay_db <= -5) & (decay_db >= -25))
    slope, _ = np.polyfit(fitted / rate, decay_db[fitted], 1)
    return float(-60 / slope)


@pytest.mark.parametrize("rate", [16000, 24000])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 3.3])
def test_augmented_keeps_length_and_full_scale(rate: int, seconds: float) -> None:
    clip = _clip(rate, seconds)
    for seed in range(12):
        changed = augmented(clip, rate, ALL, seed)
        assert changed.shape == clip.shape
        assert changed.dtype == torch.float32
        assert torch.isfinite(changed).all()
        assert float(changed.abs().max()) <= 1


def test_disabled_settings_leave_samples_unchanged() -> None:
    clip = _clip()
    assert torch.equal(augmented(clip, 16000, OFF, 3), clip)


@pytest.mark.parametrize("step", STEPS)
def test_each_setting_changes_the_sound_without_delay(step: str) -> None:
    clip = _clip()
    for seed in range(6):
        changed = augmented(clip, 16000, _only(step), seed)
        assert not torch.allclose(changed, clip, atol=1e-4)
        lags = scipy.signal.correlation_lags(len(clip), len(clip))
        assert lags[np.argmax(np.abs(scipy.signal.correlate(changed.numpy(), clip.numpy())))] == 0


def test_seed_determines_the_samples() -> None:
    clip = _clip()

    def check(change: Callable[[int], Tensor]) -> None:
        assert torch.equal(change(1), change(1))
        assert not torch.equal(change(1), change(2))

    check(lambda seed: augmented(clip, 16000, ALL, seed))
    for kind in ("snr20", "snr10", "room"):
        check(lambda seed, kind=kind: degraded(clip, 16000, kind, seed))
    assert torch.equal(degraded(clip, 16000, "telephone", 1), degraded(clip, 16000, "telephone", 1))


def test_global_generators_and_the_input_are_unchanged() -> None:
    clip = _clip()
    before = clip.clone()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    for seed in range(6):
        augmented(clip, 16000, ALL, seed)
        for kind in DEGRADATIONS:
            degraded(clip, 16000, kind, seed)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert random.random() == expected[2]
    assert torch.equal(clip, before)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_noise_has_the_signal_to_noise_ratio_of_the_settings(rate: int) -> None:
    clip = _clip(rate) * 0.3  # far below full scale, so that the peak is not limited
    for seed in range(20):
        noisy = augmented(clip, rate, _only("noise").model_copy(update={"snr_db": (7.0, 7.0)}), seed)
        assert _snr_db(clip, noisy) == pytest.approx(7, abs=0.01)
    drawn = [_snr_db(clip, augmented(clip, rate, _only("noise"), seed)) for seed in range(100)]
    low, high = Augment().snr_db
    assert low - 0.01 <= min(drawn) < low + 4
    assert high - 4 < max(drawn) <= high + 0.01


@pytest.mark.parametrize(("kind", "snr_db"), [("snr20", 20), ("snr10", 10)])
@pytest.mark.parametrize("rate", [16000, 24000])
def test_fixed_noise_has_its_exact_ratio_and_the_spectrum_of_speech(kind: str, snr_db: float, rate: int) -> None:
    clip = _clip(rate, 4.0)
    noisy = degraded(clip, rate, kind, 3)
    assert _snr_db(clip, noisy) == pytest.approx(snr_db, abs=0.001)
    hertz, power = scipy.signal.welch((noisy - clip).double().numpy(), rate, nperseg=1024)
    octaves_db = [10 * np.log10(power[(hertz > f) & (hertz < 1.2 * f)].mean()) for f in (200, 400, 1000, 2000, 4000)]
    assert octaves_db[0] == pytest.approx(octaves_db[1], abs=1.5)
    assert np.diff(octaves_db[2:]) == pytest.approx([-9, -9], abs=1.5)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_telephone_passes_only_its_band(rate: int) -> None:
    hertz, gain_db = _gain_db(_white(rate), degraded(_white(rate), rate, "telephone", 0), rate)
    outside = ((hertz > 30) & (hertz < 280)) | ((hertz > 3420) & (hertz < rate / 2))
    assert gain_db[outside].max() < -30
    within = (hertz > 340) & (hertz < 3100)
    assert np.abs(gain_db[within]).max() < 0.5


@pytest.mark.parametrize("rate", [16000, 24000])
@pytest.mark.parametrize("rt60", [0.1, 0.3, 0.8])
def test_room_response_has_its_rt60(rate: int, rt60: float) -> None:
    for seed in range(5):
        response = augmentation._random_room(np.random.default_rng(seed), rate, rt60, direct_db=0.0)
        assert _measured_rt60(response, rate) == pytest.approx(rt60, rel=0.2)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_fixed_room_has_its_rt60_and_direct_to_reverberant_ratio(rate: int) -> None:
    impulse = torch.zeros(rate)
    impulse[0] = 1
    for seed in range(5):
        response = degraded(impulse, rate, "room", seed).double().numpy()
        assert _measured_rt60(response, rate) == pytest.approx(augmentation.ROOM_RT60, rel=0.2)
        direct_db = 10 * np.log10(response[0] ** 2 / (response[1:] ** 2).sum())
        assert direct_db == pytest.approx(augmentation.ROOM_DIRECT_DB, abs=0.1)


def test_reverberation_matches_convolution_and_keeps_loudness() -> None:
    clip = _clip()
    response = augmentation._random_room(np.random.default_rng(0), 16000, 0.5, direct_db=3.0)
    expected = scipy.signal.fftconvolve(clip.double().numpy(), response)[: len(clip)]
    expected *= np.sqrt((clip.double().numpy() ** 2).mean() / (expected**2).mean())
    np.testing.assert_allclose(augmentation._add_reverberation(clip.numpy(), response), expected, atol=1e-5)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_equaliser_is_smooth_and_within_its_largest_gain(rate: int) -> None:
    white = _white(rate, 2.0)
    largest = []
    for seed in range(8):
        hertz, gain_db = _gain_db(white, augmented(white, rate, _only("equaliser"), seed), rate)
        inside = gain_db[(hertz > 30) & (hertz < rate / 2 - 30)]
        assert np.abs(inside).max() < 6.5
        largest.append(np.abs(inside).max())
        fine = augmentation._random_equaliser(np.random.default_rng(seed), rate, 6.0)(2 ** np.linspace(6, 12.9, 2000))
        assert np.abs(np.diff(20 * np.log10(fine))).max() < 0.1  # 1/290 octave apart
    assert max(largest) > 4


def test_band_limit_keeps_the_middle_and_removes_the_ends() -> None:
    white = _white(16000)
    highest = []
    for seed in range(12):
        hertz, gain_db = _gain_db(white, augmented(white, 16000, _only("band_limit"), seed), 16000)
        assert np.abs(gain_db[(hertz > 850) & (hertz < 1350)]).max() < 0.5
        assert gain_db[(hertz > 7600) & (hertz < 7950)].max() < -30
        highest.append(hertz[gain_db > -6].max())
    assert min(highest) < 3600 < 5000 < max(highest) < 7500


@pytest.mark.parametrize("rate", [16000, 24000])
def test_codec_output_differs_from_the_clip_and_correlates_with_it(rate: int) -> None:
    clip = _clip(rate)
    correlations = [_correlation(clip, augmented(clip, rate, _only("codec"), seed)) for seed in range(20)]
    assert min(correlations) > 0.9
    assert max(correlations) < 0.99999
    assert len({round(c, 6) for c in correlations}) > 10  # codecs and bit rates vary


def test_codecs_accept_long_clips() -> None:
    clip = _clip(24000, 45.0)
    for subtype, file_format, mode in (("VORBIS", "OGG", None), ("MPEG_LAYER_III", "MP3", "VARIABLE")):
        decoded = augmentation._encode_and_decode(clip.numpy(), 24000, file_format, subtype, mode, 0.5)
        assert decoded.shape == clip.shape
        assert _correlation(clip, torch.from_numpy(decoded)) > 0.95


def test_gain_is_one_factor_within_its_bounds() -> None:
    clip = _clip() * 0.5
    gains_db = []
    for seed in range(50):
        changed = augmented(clip, 16000, _only("gain"), seed)
        gain = float((changed @ clip) / (clip @ clip))
        torch.testing.assert_close(changed, gain * clip, rtol=1e-5, atol=1e-7)
        gains_db.append(20 * np.log10(gain))
    assert -6.01 < min(gains_db) < -4
    assert 4 < max(gains_db) < 6.01


def test_probability_is_the_frequency_of_a_step() -> None:
    clip = _clip(seconds=0.1)
    settings = OFF.model_copy(update={"noise": 0.25})
    changed = sum(not torch.equal(augmented(clip, 16000, settings, seed), clip) for seed in range(400))
    assert 70 < changed < 130  # of 400, 100 ± 3.5 standard deviations


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("rate", [16000, 24000])
def test_each_condition_accepts_clips_of_any_length(kind: str, rate: int) -> None:
    for seconds in (0.1, 2.0):
        clip = _clip(rate, seconds)
        changed = degraded(clip, rate, kind, 0)
        assert changed.shape == clip.shape
        assert changed.dtype == torch.float32
        assert torch.isfinite(changed).all()
        assert not torch.allclose(changed, clip, atol=1e-3)


def test_silence_stays_finite() -> None:
    for seed in range(6):
        assert torch.isfinite(augmented(torch.zeros(1600), 16000, ALL, seed)).all()
    for kind in DEGRADATIONS:
        assert torch.isfinite(degraded(torch.zeros(1600), 16000, kind, 0)).all()


def test_unknown_condition_raises_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="condition 'cave': unknown; choose one of: snr20, snr10, telephone, room"):
        degraded(_clip(), 16000, "cave", 0)
