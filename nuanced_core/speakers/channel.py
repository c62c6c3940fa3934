"""A random channel between Kokoro and a speaker encoder: a gentle equaliser and noise.

Without it, styles are found that only deceive the speaker encoder: what it asks for, another one does not hear.

Dimensions: B batch, T samples at 16 kHz.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["random_channel"]

COLOUR_TAPS = 33
COLOURS = (0.1, 8.0)  # samples in which the noise's filter decays: from white to -6 dB an octave above 320 Hz


def random_channel(
    audio: Tensor,
    generator: torch.Generator,
    snr_db: tuple[float, float] = (15.0, 40.0),
    taps: int = 9,
    strength: float = 0.1,
) -> Tensor:
    """Pass each clip of audio (B, T) at 16 kHz through a random filter of its own and add noise; differentiable.

    The noise is in proportion to the clip, so that a louder clip has no less of it.

    Args:
        generator: source of all random numbers; the same state gives the same channels, on every device.
        snr_db: lowest and highest ratio in dB of a clip's mean power to that of its noise, drawn uniformly.
        taps: length of the filter, odd: its middle one is 1, so there is no delay.
        strength: standard deviation of the other taps; 0.1 with 9 taps is about ±3 dB, 0 leaves the spectrum as it is.
    """
    batch, samples = audio.shape

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    def draw_uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, generator=generator, device=generator.device)

    filters = strength * draw(batch, taps)
    filters[:, taps // 2] = 1.0
    decay = draw_uniform(math.log(COLOURS[0]), math.log(COLOURS[1])).exp()
    colours = torch.exp(-torch.arange(COLOUR_TAPS, device=generator.device) / decay)
    snr = draw_uniform(*snr_db)
    noise = _filter_each(draw(batch, samples), colours).to(audio)
    equalised = _filter_each(audio, filters.to(audio))
    ratio = 10 ** (-snr.to(audio) / 20) / noise.square().mean(dim=1, keepdim=True).sqrt()
    level = equalised.square().mean(dim=1, keepdim=True).clamp(min=torch.finfo(audio.dtype).tiny).sqrt()
    return equalised + ratio * level * noise


def _filter_each(audio: Tensor, filters: Tensor) -> Tensor:
    """Convolve each clip of (B, T) with its own filter of (B, odd number of taps), without delay."""
    padding = filters.shape[1] // 2
    return F.conv1d(audio[None], filters.flip(1).unsqueeze(1), padding=padding, groups=len(audio))[0]
