"""nuanced_core.evaluation.metrics against closed forms and SciPy."""

import numpy as np
import pytest
from scipy import stats

from nuanced_core.evaluation import metrics
from nuanced_core.evaluation.metrics import Estimate, as_json, estimate
from nuanced_core.training import validation
from nuanced_core.training.validation import Baselines, Scores


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_f0_error_of_an_octave_is_12_semitones_and_ignores_unvoiced_frames() -> None:
    reference = np.array([100.0, 200.0, 0.0, 150.0])
    assert metrics.f0_error(2 * reference, reference) == pytest.approx(12)
    assert metrics.f0_error([100, 200, 300, 0], reference) == 0
    assert metrics.f0_error([50, 200, 300, 3], reference) == pytest.approx(6)
    assert np.isnan(metrics.f0_error([0, 0, 100, 0], reference))


def test_f0_spread_is_the_standard_deviation_in_semitones(rng: np.random.Generator) -> None:
    f0 = rng.uniform(80, 300, 50)
    assert metrics.f0_spread([*f0, 0, 5]) == pytest.approx(np.std(12 * np.log2(f0)))
    assert metrics.f0_spread(3 * f0) == pytest.approx(metrics.f0_spread(f0))
    assert np.isnan(metrics.f0_spread([0, 5]))


def test_mean_and_correlation_ignore_nan(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 3, 20))
    y += x
    x[0, 3] = y[0, 5] = np.nan
    kept = ~np.isnan(x[0]) & ~np.isnan(y[0])
    found = metrics.correlation(x, y)
    assert found[0] == pytest.approx(stats.pearsonr(x[0, kept], y[0, kept])[0])
    assert found[1] == pytest.approx(stats.pearsonr(x[1], y[1])[0])
    np.testing.assert_allclose(metrics.mean(x), np.nanmean(x, axis=-1))
    assert np.isnan(metrics.mean(np.array([np.nan])))
    assert np.isnan(metrics.correlation(np.full(9, 0.1), x[1, :9]))
    assert metrics.energy_correlation(x[1], 3 * x[1] - 5) == pytest.approx(1)


def test_relative_error() -> None:
    assert metrics.relative_error(8, 10) == metrics.relative_error(12, 10) == pytest.approx(0.2)


def test_skill_equals_that_of_validation(rng: np.random.Generator) -> None:
    loss, mean, oracle = rng.uniform(1, 2, 6), rng.uniform(3, 4, 6), rng.uniform(0, 1, 6)
    baselines = Baselines(Scores(mean.mean(), 0, 0), Scores(oracle.mean(), 0, 0))
    assert metrics.skill(loss, mean, oracle) == pytest.approx(validation.skill(loss.mean(), baselines))
    assert metrics.skill(mean, mean, oracle) == 0
    assert metrics.skill(oracle, mean, oracle) == 1
    assert np.isnan(metrics.skill(mean, oracle, oracle))


def test_speaker_identity_is_0_for_another_speaker_and_1_for_the_same() -> None:
    other, same = np.array([0.5, 0.7]), np.array([0.9, 0.9])
    assert metrics.speaker_identity(other, other, same) == 0
    assert metrics.speaker_identity(same, other, same) == 1
    assert metrics.speaker_identity(np.array([0.7, 0.8]), other, same) == pytest.approx(0.5)


def test_interval_matches_scipy_s_percentile_bootstrap(rng: np.random.Generator) -> None:
    values = rng.normal(3, 1, size=(12, 1))
    found = estimate(metrics.mean, values)
    options = {"method": "percentile", "n_resamples": 20_000, "rng": np.random.default_rng(1)}
    expected = stats.bootstrap((values[:, 0],), np.mean, **options).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert found.low < found.value < found.high
    assert found == estimate(metrics.mean, values)
    assert found != estimate(metrics.mean, values, seed=1)


def test_bootstrap_resamples_whole_voices(rng: np.random.Generator) -> None:
    voices = rng.normal(size=(9, 1))
    once, repeated = estimate(metrics.mean, voices), estimate(metrics.mean, np.repeat(voices, 50, axis=1))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))


def test_ratio_is_recomputed_for_each_resample(rng: np.random.Generator) -> None:
    mean, oracle = rng.uniform(1, 9, size=(9, 2)), rng.uniform(0, 0.1, size=(9, 2))
    # Every voice has skill 0.25, so every resample has it too.
    found = estimate(metrics.skill, oracle + 0.75 * (mean - oracle), mean, oracle)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_single_voice_has_no_interval_and_json_has_no_nan() -> None:
    found = estimate(metrics.mean, np.array([[1.0, 2.0]]))
    assert as_json({"a": found, "b": Estimate(1, 0, 2)}) == {"a": 1.5, "a_ci": [None, None], "b": 1, "b_ci": [0, 2]}
