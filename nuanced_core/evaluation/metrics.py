"""What is measured of an utterance, and how it is summed up over utterances: point values and bootstrap intervals.

An undefined value (pitch where nothing is voiced) is NaN; sums leave it out.

Dimensions: F Kokoro frames, V voices, U utterances a voice, R resamples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Estimate",
    "as_json",
    "correlation",
    "energy_correlation",
    "estimate",
    "f0_error",
    "f0_spread",
    "mean",
    "normalised",
    "relative_error",
    "skill",
]

Floats = NDArray[np.floating[Any]]
Statistic = Callable[..., Floats]  # arrays (..., U) to (...)

VOICED_HZ = 10.0  # Kokoro's source is voiced above this
SEMITONES = 12.0  # an octave
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float


def f0_error(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Mean absolute difference of two pitch curves (2F,) in Hz, in semitones, over what is voiced in both."""
    x, y = np.asarray(predicted, float), np.asarray(reference, float)
    voiced = (x > VOICED_HZ) & (y > VOICED_HZ)
    return float(np.abs(SEMITONES * np.log2(x[voiced] / y[voiced])).mean()) if voiced.any() else np.nan


def f0_spread(f0: ArrayLike) -> float:
    """Standard deviation in semitones of a pitch curve (2F,) in Hz, over what is voiced: how lively it is."""
    curve = np.asarray(f0, float)
    voiced = curve[curve > VOICED_HZ]
    return float((SEMITONES * np.log2(voiced)).std()) if len(voiced) else np.nan


def energy_correlation(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Pearson's correlation of two energy curves (2F,)."""
    return float(correlation(np.asarray(predicted, float), np.asarray(reference, float)))


def relative_error(predicted: float, reference: float) -> float:
    """``|predicted - reference| / reference``."""
    return abs(predicted - reference) / reference


def mean(values: Floats) -> Floats:
    """Over the last axis, without NaN; NaN where nothing is left."""
    there = ~np.isnan(values)
    count = there.sum(axis=-1)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def correlation(x: Floats, y: Floats) -> Floats:
    """Pearson's, over the last axis, of the pairs without NaN; NaN where one of the two does not vary."""
    there = ~(np.isnan(x) | np.isnan(y))
    x, y = np.where(there, x, np.nan), np.where(there, y, np.nan)
    dx, dy = x - mean(x)[..., None], y - mean(y)[..., None]
    variance = mean(dx**2) * mean(dy**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A constant's variance is what rounding leaves of it.
        varies = variance > 1e-24 * mean(x**2) * mean(y**2)
        return np.where(varies, mean(dx * dy) / np.sqrt(variance), np.nan)


def skill(loss: Floats, mean_loss: Floats, oracle_loss: Floats) -> Floats:
    """``1 - (L - L_oracle) / (L_mean - L_oracle)`` of means over the last axis: 0 the mean voice, 1 the oracle."""
    best = mean(oracle_loss)
    return 1 - _ratio(mean(loss) - best, mean(mean_loss) - best)


def normalised(cosine: Floats, stranger: Floats, same: Floats) -> Floats:
    """``(c - stranger) / (same - stranger)`` of means over the last axis: 0 a stranger, 1 the same voice."""
    worst = mean(stranger)
    return _ratio(mean(cosine) - worst, mean(same) - worst)


def estimate(statistic: Statistic, *values: Floats, seed: int = 0) -> Estimate:
    """A statistic of values (V, U) each, with the interval of 95 % over resampled voices.

    Percentile bootstrap (Efron 1979): whole voices are drawn with replacement and the statistic, ratios included, is
    computed anew of each draw. A voice's utterances stay together, since they are not independent.
    Of one voice there is no interval: NaN.
    """
    voices = len(values[0])
    value = float(statistic(*(v.reshape(-1) for v in values)))
    if voices == 1:
        return Estimate(value, np.nan, np.nan)
    draws = np.random.default_rng(seed).integers(voices, size=(RESAMPLES, voices))
    resampled = statistic(*(v[draws].reshape(RESAMPLES, -1) for v in values))  # (R,)
    defined = resampled[~np.isnan(resampled)]
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(defined, tails) if len(defined) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def as_json(estimates: Mapping[str, Estimate]) -> dict[str, float | list[float | None] | None]:
    """Each estimate as ``name`` and ``name_ci``, [low, high]; JSON has no NaN, so what is undefined is None."""
    found: dict[str, float | list[float | None] | None] = {}
    for name, one in estimates.items():
        value, low, high = (None if np.isnan(x) else x for x in (one.value, one.low, one.high))
        found |= {name: value, f"{name}_ci": [low, high]}
    return found


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / below)
