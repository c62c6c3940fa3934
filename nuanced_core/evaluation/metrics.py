"""Metrics of one utterance, and statistics over utterances with bootstrap intervals.

An undefined value (such as the pitch error of unvoiced audio) is NaN; statistics ignore it.

Dimensions: F Kokoro frames, V voices, U utterances per voice, R resamples.
"""

import warnings
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
    "median",
    "relative_error",
    "skill",
    "speaker_identity",
]

Floats = NDArray[np.floating[Any]]
Statistic = Callable[..., Floats]  # arrays (..., U) → (...)

VOICED_HZ = 10.0  # Kokoro's source is voiced above this
SEMITONES_PER_OCTAVE = 12.0
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float


def f0_error(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Return the mean absolute difference in semitones of two pitch curves (2F,) in Hz, where both are voiced."""
    x, y = np.asarray(predicted, float), np.asarray(reference, float)
    voiced = (x > VOICED_HZ) & (y > VOICED_HZ)
    return float(np.abs(SEMITONES_PER_OCTAVE * np.log2(x[voiced] / y[voiced])).mean()) if voiced.any() else np.nan


def f0_spread(f0: ArrayLike) -> float:
    """Return the standard deviation in semitones of a pitch curve (2F,) in Hz, where it is voiced."""
    curve = np.asarray(f0, float)
    voiced = curve[curve > VOICED_HZ]
    return float((SEMITONES_PER_OCTAVE * np.log2(voiced)).std()) if len(voiced) else np.nan


def energy_correlation(predicted: ArrayLike, reference: ArrayLike) -> float:
    """Return Pearson's correlation of two energy curves (2F,)."""
    return float(correlation(np.asarray(predicted, float), np.asarray(reference, float)))


def relative_error(predicted: float, reference: float) -> float:
    """Return ``|predicted - reference| / reference``."""
    return abs(predicted - reference) / reference


def mean(values: Floats) -> Floats:
    """Return the mean over the last axis without NaN; NaN if all values are NaN."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    return np.where(count > 0, np.where(defined, values, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def median(values: Floats) -> Floats:
    """Return the median over the last axis without NaN; NaN if all values are NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all NaN
        found: Floats = np.asarray(np.nanmedian(values, axis=-1))
    return found


def correlation(x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation over the last axis of the pairs without NaN; NaN if x or y is constant."""
    defined = ~(np.isnan(x) | np.isnan(y))
    x, y = np.where(defined, x, np.nan), np.where(defined, y, np.nan)
    dx, dy = x - mean(x)[..., None], y - mean(y)[..., None]
    variance = mean(dx**2) * mean(dy**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Rounding errors give a constant a variance above 0.
        varies = variance > 1e-24 * mean(x**2) * mean(y**2)
        return np.where(varies, mean(dx * dy) / np.sqrt(variance), np.nan)


def skill(loss: Floats, mean_loss: Floats, oracle_loss: Floats) -> Floats:
    """Return ``1 - (L - L_oracle) / (L_mean - L_oracle)`` of means over the last axis.

    0 is the mean voice, 1 the oracle.
    """
    best = mean(oracle_loss)
    return 1 - _ratio(mean(loss) - best, mean(mean_loss) - best)


def speaker_identity(cosine: Floats, other_speaker: Floats, same_speaker: Floats) -> Floats:
    """Return ``(c - other) / (same - other)`` of means over the last axis, of cosines of speaker embeddings.

    0 is another speaker, 1 the same speaker.
    """
    worst = mean(other_speaker)
    return _ratio(mean(cosine) - worst, mean(same_speaker) - worst)


def estimate(statistic: Statistic, *values: Floats, seed: int = 0) -> Estimate:
    """Compute a statistic of values, (V, U) each, and its 95 % interval over resampled voices.

    Percentile bootstrap (Efron 1979): whole voices are drawn with replacement, since utterances of a voice are not
    independent, and the statistic, ratios included, is recomputed for each draw. For a single voice the interval is
    NaN.
    """
    voices = len(values[0])
    value = float(statistic(*(v.reshape(-1) for v in values)))
    if voices == 1:
        return Estimate(value, np.nan, np.nan)
    draws = np.random.default_rng(seed).integers(voices, size=(RESAMPLES, voices))
    resampled = statistic(*(v[draws].reshape(RESAMPLES, -1) for v in values))  # (R,)
    defined = resampled[~np.isnan(resampled)]
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    low, high = np.quantile(defined, tails) if len(defined) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def as_json(estimates: Mapping[str, Estimate]) -> dict[str, float | list[float | None] | None]:
    """Return each estimate as ``name`` and ``name_ci``, [low, high]; NaN becomes None, as JSON has no NaN."""
    found: dict[str, float | list[float | None] | None] = {}
    for name, one in estimates.items():
        value, low, high = (None if np.isnan(x) else x for x in (one.value, one.low, one.high))
        found |= {name: value, f"{name}_ci": [low, high]}
    return found


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)
