"""Synthetic voices for the tests of speaker encoders, without random numbers, so that they are the same everywhere."""

import torch
from torch import Tensor

FORMANTS = ((700, 1220, 2600), (400, 1900, 2550), (520, 1000, 2300))  # Hz of three vowels


def voice(f0: float, seconds: float, tract: float = 1.0, rate: int = 16_000) -> Tensor:
    """A gliding pitch around ``f0`` Hz through three vowels in turn, four syllables a second, and a little noise.

    ``tract`` scales the formants: above 1 for a shorter vocal tract.
    """
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    pitch = f0 * (1 + 0.1 * torch.sin(2 * torch.pi * 0.7 * time))
    phase = 2 * torch.pi * torch.cumsum(pitch, dim=0) / rate
    vowel = (time * 2).long() % len(FORMANTS)
    sound = torch.zeros_like(time)
    for harmonic in range(1, int(4500 / f0)):
        peaks = torch.tensor(FORMANTS, dtype=torch.float64) * tract
        level = torch.exp(-(((harmonic * f0 - peaks) / 160) ** 2)).sum(dim=1) / harmonic**0.5
        sound += level[vowel] * torch.sin(harmonic * phase)
    envelope = 0.55 + 0.45 * torch.sin(2 * torch.pi * 4 * time)
    noise = torch.frac(torch.sin(12.9898 * torch.arange(len(time), dtype=torch.float64)) * 43758.5453)
    sound = envelope * sound / sound.std() + 0.01 * noise
    return (0.05 * sound).float()
