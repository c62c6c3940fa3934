"""Loudness by EBU R 128 (ITU-R BS.1770-4) in LUFS, of a sound or of one that is heard in parts."""

import math
from collections.abc import Iterable

import numpy as np
from pyloudnorm import Meter
from torch import Tensor

__all__ = ["block_loudness", "integrated_loudness", "loudness"]

BLOCK_SECONDS = 0.4
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU below the mean
OFFSET = -0.691  # of a block's loudness from the level of its K-weighted samples in dB


def block_loudness(audio: Tensor, rate: int) -> list[float]:
    """Return the loudness of each overlapping block of 400 ms of audio (samples,); none if it is shorter."""
    if len(audio) < BLOCK_SECONDS * rate:
        return []
    meter = Meter(rate)
    meter.integrated_loudness(audio.detach().double().cpu().numpy())
    return [float(value) for value in meter.blockwise_loudness]


def integrated_loudness(blocks: Iterable[float]) -> float:
    """Return the loudness of blocks, gated as a whole; -inf if all are silent."""
    levels = np.array([value for value in blocks if value >= ABSOLUTE_GATE])
    if not len(levels):
        return -math.inf
    power = 10 ** ((levels - OFFSET) / 10)
    gate = OFFSET + 10 * math.log10(power.mean()) + RELATIVE_GATE
    return OFFSET + 10 * math.log10(power[levels > gate].mean())


def loudness(audio: Tensor, rate: int) -> float:
    """Return the integrated loudness of audio (samples,); what is shorter than a block is repeated to its length."""
    if 0 < len(audio) < BLOCK_SECONDS * rate:
        audio = audio.repeat(math.ceil(BLOCK_SECONDS * rate / len(audio)))
    return integrated_loudness(block_loudness(audio, rate))
