"""Made-up voices beside the stock ones: weights over the training voices, timbre and prosody each for itself.

A mix speaks n phonemes in the style ``mean + Σ w_v (style_v − mean) + d b``: the sum is over the V training voices'
styles for n phonemes, d is the root of the mean of ``|style_v − mean|²``. Weights and d are those of each half. b, of
length ``mixes.beyond`` or so in each half, leads out of what voices can be mixed to, where a new voice partly lies (of
four, 30 % of the variance of timbre and 20 % of that of prosody).

Dimensions: V training voices, S = 256 style.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuanced_core.config.settings import Mixes
from nuanced_core.errors import ConfigError
from nuanced_core.hashing import content_key
from nuanced_core.kokoro.model import PACK_ROWS, STYLE_SIZE, TIMBRE_SIZE

__all__ = ["MixedVoice", "mixed_voices", "style"]

Weights = NDArray[np.float64]  # (V,)
Draw = Callable[[np.random.Generator], tuple[Weights, Weights]]  # of timbre and prosody


@dataclass(frozen=True)
class MixedVoice:
    """A made-up voice: what of each training voice's offset from their mean is in it."""

    name: str
    timbre: Tensor  # (V,) float64
    prosody: Tensor  # (V,) float64
    beyond: Tensor  # (256,) float64


def mixed_voices(settings: Mixes, training_voices: Sequence[str], seed: int) -> list[MixedVoice]:
    """The made-up voices that the settings ask for, with weights in the order of ``training_voices``.

    The i-th voice of a kind depends on nothing but its own settings, the voices and the seed: more of a kind, or of
    another kind, leave it as it is.

    Raises:
        ConfigError: there are too few training voices.
    """
    count = len(training_voices)
    if settings.members > count and any((settings.blends, settings.half_blends, settings.steps, settings.half_steps)):
        raise ConfigError(f"mixes.members: {settings.members}: there are {count} training voices; take at most {count}")
    if settings.swaps and count < 2:
        raise ConfigError(f"mixes.swaps: {settings.swaps}: one training voice cannot be swapped; add to data.voices")

    def blend(rng: np.random.Generator) -> Weights:
        weights = np.zeros(count)
        members = rng.choice(count, settings.members, replace=False)
        weights[members] = rng.dirichlet(np.full(settings.members, settings.concentration))
        return weights

    def moved(rng: np.random.Generator) -> Weights:
        # Offsets weighted by g / √V with g ~ N(0, 1) have the covariance of the voices.
        weights = blend(rng)
        weights += settings.step_size * rng.standard_normal(count) / np.sqrt(count)
        return weights

    def swap(rng: np.random.Generator) -> tuple[Weights, Weights]:
        timbre, prosody = np.eye(count)[rng.choice(count, 2, replace=False)]
        return timbre, prosody

    draws: list[tuple[str, int, Draw]] = [
        ("blend", settings.blends, _together(blend)),
        ("half-blend", settings.half_blends, _apart(blend)),
        ("swap", settings.swaps, swap),
        ("step", settings.steps, _together(moved)),
        ("half-step", settings.half_steps, _apart(moved)),
    ]
    voices = []
    for kind, number, draw in draws:
        for index in range(number):
            # Sizes are no part of the seed: another step_size is a longer step of the same voice the same way.
            key = content_key(seed, kind, index, list(training_voices))
            rng = np.random.default_rng(int(key, 16))
            timbre, prosody = draw(rng)
            length = settings.beyond if kind.endswith("step") else 0.0
            beyond = length * rng.standard_normal(STYLE_SIZE) / np.sqrt(TIMBRE_SIZE)
            parts = (torch.from_numpy(part) for part in (timbre, prosody, beyond))
            voices.append(MixedVoice(f"{kind}-{index:04}", *parts))
    return voices


def _together(weights: Callable[[np.random.Generator], Weights]) -> Draw:
    """The same weights for timbre and prosody, as every real voice has them."""

    def draw(rng: np.random.Generator) -> tuple[Weights, Weights]:
        both = weights(rng)
        return both, both

    return draw


def _apart(weights: Callable[[np.random.Generator], Weights]) -> Draw:
    return lambda rng: (weights(rng), weights(rng))


def style(voice: MixedVoice, packs: Tensor, phoneme_count: int) -> Tensor:
    """The style (256,) in which a made-up voice speaks that many phonemes, of the training voices' packs (V, 510, 256).

    Computed in float64, so that rounding cannot depend on how a machine sums.
    """
    rows = packs[:, min(phoneme_count, PACK_ROWS) - 1].double()  # (V, S)
    mean = rows.mean(dim=0)
    offsets = rows - mean
    halves = []
    for weights, half in ((voice.timbre, slice(0, TIMBRE_SIZE)), (voice.prosody, slice(TIMBRE_SIZE, None))):
        distance = offsets[:, half].square().sum(dim=1).mean().sqrt()
        halves.append(weights @ offsets[:, half] + distance * voice.beyond[half])
    return (mean + torch.cat(halves)).float()
