"""Synthetic training voices ("mixes"): linear combinations of the training voices, with separate timbre and prosody.

The style of a mix for n phonemes is ``mean + Σ w_v (style_v − mean) + d b``. The sum runs over the styles of the V
training voices for n phonemes, ``mean`` is their mean, and d the root of the mean of ``|style_v − mean|²``. The two
halves of a style have their own w and d. b has a length of about ``mixes.beyond`` in each half and a random direction,
mostly outside the span of the training voices, where a part of every new voice lies (measured on four voices: 30 % of
the variance of timbre, 20 % of that of prosody).

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

__all__ = ["MixedVoice", "mixed_style", "mixed_voices"]

Weights = NDArray[np.float64]  # (V,)
Draw = Callable[[np.random.Generator], tuple[Weights, Weights]]  # returns (timbre, prosody)


@dataclass(frozen=True)
class MixedVoice:
    """A mix, as weights of the training voices' offsets from their mean."""

    name: str
    timbre: Tensor  # (V,) float64, weights w of the timbre half
    prosody: Tensor  # (V,) float64, weights w of the prosody half
    beyond: Tensor  # (256,) float64, the vector b


def mixed_voices(settings: Mixes, training_voices: Sequence[str], seed: int) -> list[MixedVoice]:
    """Draw the mixes that the settings ask for, with weights in the order of ``training_voices``.

    The i-th mix of a kind depends only on the settings of its kind, the training voices and the seed; the number of
    mixes of any kind does not change it.

    Raises:
        ConfigError: there are fewer training voices than ``mixes.members``, or only one to swap.
    """
    count = len(training_voices)
    if settings.members > count and any((settings.blends, settings.half_blends, settings.steps, settings.half_steps)):
        raise ConfigError(f"mixes.members: {settings.members}: there are {count} training voices; set at most {count}")
    if settings.swaps and count < 2:
        raise ConfigError(f"mixes.swaps: {settings.swaps}: there is one training voice; add another to data.voices")

    def blend(rng: np.random.Generator) -> Weights:
        weights = np.zeros(count)
        members = rng.choice(count, settings.members, replace=False)
        weights[members] = rng.dirichlet(np.full(settings.members, settings.concentration))
        return weights

    def step(rng: np.random.Generator) -> Weights:
        # Offsets weighted by g / √V with g ~ N(0, 1) have the covariance of the training voices.
        weights = blend(rng)
        weights += settings.step_size * rng.standard_normal(count) / np.sqrt(count)
        return weights

    def swap(rng: np.random.Generator) -> tuple[Weights, Weights]:
        timbre, prosody = np.eye(count)[rng.choice(count, 2, replace=False)]
        return timbre, prosody

    draws: list[tuple[str, int, Draw]] = [
        ("blend", settings.blends, _shared(blend)),
        ("half-blend", settings.half_blends, _separate(blend)),
        ("swap", settings.swaps, swap),
        ("step", settings.steps, _shared(step)),
        ("half-step", settings.half_steps, _separate(step)),
    ]
    voices = []
    for kind, number, draw in draws:
        for index in range(number):
            # The key leaves out step_size and beyond: they change the length of a step but not its direction.
            key = content_key(seed, kind, index, list(training_voices))
            rng = np.random.default_rng(int(key, 16))
            timbre, prosody = draw(rng)
            length = settings.beyond if kind.endswith("step") else 0.0
            beyond = length * rng.standard_normal(STYLE_SIZE) / np.sqrt(TIMBRE_SIZE)
            parts = (torch.from_numpy(part) for part in (timbre, prosody, beyond))
            voices.append(MixedVoice(f"{kind}-{index:04}", *parts))
    return voices


def _shared(weights: Callable[[np.random.Generator], Weights]) -> Draw:
    """Draw once and use the weights for timbre and prosody, as in a real voice."""

    def draw(rng: np.random.Generator) -> tuple[Weights, Weights]:
        both = weights(rng)
        return both, both

    return draw


def _separate(weights: Callable[[np.random.Generator], Weights]) -> Draw:
    """Draw separate weights for timbre and for prosody."""
    return lambda rng: (weights(rng), weights(rng))


def mixed_style(voice: MixedVoice, packs: Tensor, phoneme_count: int) -> Tensor:
    """Compute the style (256,) of a mix for a phoneme count from the training voices' packs (V, 510, 256).

    Computed in float64, so that the result does not depend on a machine's order of summation.
    """
    rows = packs[:, min(phoneme_count, PACK_ROWS) - 1].double()  # (V, S)
    mean = rows.mean(dim=0)
    offsets = rows - mean
    halves = []
    for weights, half in ((voice.timbre, slice(0, TIMBRE_SIZE)), (voice.prosody, slice(TIMBRE_SIZE, None))):
        spread = offsets[:, half].square().sum(dim=1).mean().sqrt()
        halves.append(weights @ offsets[:, half] + spread * voice.beyond[half])
    return (mean + torch.cat(halves)).float()
