"""Made-up voices beside the stock ones: weights over the training voices, timbre and prosody each for itself.

A mix speaks n phonemes in the style ``mean + Σ w_v (style_v − mean)``, with the styles of the V training voices for n
phonemes and their mean; the weights of the timbre half and those of the prosody half may differ.

Dimensions: V training voices, S = 256 style.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuanced_core.cache import content_key
from nuanced_core.config import Mixes
from nuanced_core.errors import ConfigError
from nuanced_core.kokoro import PACK_ROWS, STYLE_SIZE

__all__ = ["MixedVoice", "mixed_voices", "style"]

TIMBRE = STYLE_SIZE // 2  # the first half of a style: the decoder's; the other half is the prosody predictor's

Weights = NDArray[np.float64]  # (V,)


@dataclass(frozen=True)
class MixedVoice:
    """A made-up voice: what of each training voice's offset from their mean is in it."""

    name: str
    timbre: Tensor  # (V,) float64
    prosody: Tensor  # (V,) float64


def mixed_voices(settings: Mixes, training_voices: Sequence[str], seed: int) -> list[MixedVoice]:
    """The made-up voices that the settings ask for, with weights in the order of ``training_voices``.

    The i-th voice of a kind depends on nothing but its own settings, the voices and the seed: more of a kind, or of
    another kind, leave it as it is.

    Raises:
        ConfigError: there are too few training voices.
    """
    count = len(training_voices)
    if settings.members > count and (settings.blends or settings.half_blends or settings.steps):
        raise ConfigError(f"mixes.members: {settings.members}: there are {count} training voices; take at most {count}")
    if settings.swaps and count < 2:
        raise ConfigError(f"mixes.swaps: {settings.swaps}: one training voice cannot be swapped; add to data.voices")

    def blend(rng: np.random.Generator) -> Weights:
        weights = np.zeros(count)
        members = rng.choice(count, settings.members, replace=False)
        weights[members] = rng.dirichlet(np.full(settings.members, settings.concentration))
        return weights

    def both(rng: np.random.Generator) -> tuple[Weights, Weights]:
        weights = blend(rng)
        return weights, weights

    def halves(rng: np.random.Generator) -> tuple[Weights, Weights]:
        return blend(rng), blend(rng)

    def swap(rng: np.random.Generator) -> tuple[Weights, Weights]:
        timbre, prosody = np.eye(count)[rng.choice(count, 2, replace=False)]
        return timbre, prosody

    def step(rng: np.random.Generator) -> tuple[Weights, Weights]:
        # Offsets weighted by g / √V with g ~ N(0, 1) have the covariance of the voices.
        timbre, prosody = (
            blend(rng) + settings.step_size * rng.standard_normal(count) / np.sqrt(count) for _ in range(2)
        )
        return timbre, prosody

    draws: list[tuple[str, int, Callable[[np.random.Generator], tuple[Weights, Weights]]]] = [
        ("blend", settings.blends, both),
        ("half-blend", settings.half_blends, halves),
        ("swap", settings.swaps, swap),
        ("step", settings.steps, step),
    ]
    voices = []
    for kind, number, draw in draws:
        for index in range(number):
            # Sizes are no part of the seed: another step_size is a longer step of the same voice the same way.
            key = content_key(seed, kind, index, list(training_voices))
            timbre, prosody = draw(np.random.default_rng(int(key, 16)))
            voices.append(MixedVoice(f"{kind}-{index:04}", torch.from_numpy(timbre), torch.from_numpy(prosody)))
    return voices


def style(voice: MixedVoice, packs: Tensor, phoneme_count: int) -> Tensor:
    """The style (256,) in which a made-up voice speaks that many phonemes, of the training voices' packs (V, 510, 256).

    Computed in float64, so that rounding cannot depend on how a machine sums.
    """
    rows = packs[:, min(phoneme_count, PACK_ROWS) - 1].double()  # (V, S)
    mean = rows.mean(dim=0)
    offsets = rows - mean
    mixed = torch.cat([voice.timbre @ offsets[:, :TIMBRE], voice.prosody @ offsets[:, TIMBRE:]])
    return (mean + mixed).float()
