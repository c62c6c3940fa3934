"""Pooling strategies: a clip's feature frames become one vector, however long the clip is.

Contract (``tests/test_pooling.py``): frames behind a clip's end never matter, items of a batch do not touch each
other, one frame is enough, gradients are finite.

Dimensions: B batch, T feature frames, C channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["POOLINGS", "MeanPooling", "MeanStdPooling", "Pooling"]


class Pooling(nn.Module):
    """Frames (B, T, C) and a mask (B, T), True where a clip has a frame, to (B, ``out_channels``)."""

    out_channels: int

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """The pooled frames, (B, out_channels)."""
        raise NotImplementedError


class MeanPooling(Pooling):
    """The mean over time: what a clip sounds like on the whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return _mean(frames, mask)


class MeanStdPooling(Pooling):
    """Mean and standard deviation over time (statistics pooling, Snyder et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = 2 * channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        mean = _mean(frames, mask)
        variance = _mean((frames - mean.unsqueeze(1)).square(), mask)
        # The slope of a root at 0 is infinite: a clip of one frame has variance 0.
        return torch.cat([mean, torch.sqrt(variance + 1e-8)], dim=1)


def _mean(frames: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(frames.dtype).unsqueeze(2)
    # where, not a product: a frame behind the end may hold anything, even NaN.
    kept = torch.where(mask.unsqueeze(2), frames, torch.zeros((), dtype=frames.dtype, device=frames.device))
    return kept.sum(dim=1) / weights.sum(dim=1)


POOLINGS: dict[str, Callable[[int], Pooling]] = {"mean": MeanPooling, "mean_std": MeanStdPooling}
