"""Pooling strategies: a clip's feature frames become one vector, however long the clip is.

Contract (``tests/test_pooling.py``): frames behind a clip's end never matter, items of a batch do not touch each
other, one frame is enough, gradients are finite. Attention starts close to the mean.

Dimensions: B batch, T feature frames, C channels, H heads.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "POOLINGS",
    "AttentivePooling",
    "AttentiveStatsPooling",
    "GRUPooling",
    "MaxPooling",
    "MeanPooling",
    "MeanStdPooling",
    "Pooling",
    "QueryPooling",
    "mean_over_time",
    "std_over_time",
]

SCORE_CHANNELS = 128  # hidden channels of what scores a frame
GRU_CHANNELS = 128
EPSILON = 1e-8  # under a root, whose slope at 0 is infinite: a clip of one frame has variance 0


class Pooling(nn.Module):
    """Frames (B, T, C) and a mask (B, T), True where a clip has a frame, to (B, ``out_channels``).

    A clip's frames come first, and there is at least one. All strategies are made of ``channels`` (C) and ``heads``
    (H), which the attentive ones and the queries read.
    """

    out_channels: int

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """The pooled frames, (B, out_channels)."""
        raise NotImplementedError


class MeanPooling(Pooling):
    """The mean over time: what a clip sounds like on the whole."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return mean_over_time(frames, mask)


class MeanStdPooling(Pooling):
    """Mean and standard deviation over time (statistics pooling, Snyder et al. 2017)."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.out_channels = 2 * channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        mean = mean_over_time(frames, mask)
        return torch.cat([mean, std_over_time(frames, mask, mean)], dim=1)


class MaxPooling(Pooling):
    """The largest value of each channel over time."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return frames.masked_fill(~mask.unsqueeze(2), -math.inf).amax(dim=1)


class AttentivePooling(Pooling):
    """A mean weighted by learned attention; each head weighs the frames for its own share of the channels.

    Shares are as equal as can be, so H need not divide C. A frame's score is that of Okabe et al. 2018, a layer of
    tanh and a linear one.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.attention = _FrameScores(channels, heads)
        self.out_channels = channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        kept = _kept(frames, mask)
        return _weighted_mean(kept, _attention(self.attention(kept), mask))


class AttentiveStatsPooling(Pooling):
    """Mean and standard deviation weighted by learned attention (Okabe et al. 2018); heads as in attentive pooling."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.attention = _FrameScores(channels, heads)
        self.out_channels = 2 * channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        kept = _kept(frames, mask)
        weights = _attention(self.attention(kept), mask)  # (B, T, H)
        mean = _weighted_mean(kept, weights)
        variance = _weighted_mean((kept - mean.unsqueeze(1)).square(), weights)
        return torch.cat([mean, torch.sqrt(variance + EPSILON)], dim=1)


class QueryPooling(Pooling):
    """H learned queries attend to the frames' keys; each yields a weighted mean of all channels, side by side."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        # A key's bias would move all scores of a query alike, which the softmax does not see.
        self.keys = nn.Linear(channels, SCORE_CHANNELS, bias=False)
        self.queries = nn.Parameter(torch.empty(heads, SCORE_CHANNELS))
        nn.init.normal_(self.queries, std=0.1)
        self.out_channels = heads * channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        kept = _kept(frames, mask)
        scores = self.keys(kept) @ self.queries.T / math.sqrt(SCORE_CHANNELS)  # (B, T, H)
        return torch.einsum("bth,btc->bhc", _attention(scores, mask), kept).flatten(1)


class GRUPooling(Pooling):
    """The state of a one-directional GRU after a clip's last frame."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, GRU_CHANNELS, batch_first=True)
        self.out_channels = GRU_CHANNELS

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        # The GRU runs on over the padding: packing would wait for the lengths on the host.
        states: Tensor = self.gru(_kept(frames, mask))[0]  # (B, T, out_channels)
        last = mask.sum(dim=1) - 1
        return states[torch.arange(len(states), device=states.device), last]


class _FrameScores(nn.Module):
    """Frames (B, T, C) to a score for each head (B, T, H)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, SCORE_CHANNELS)
        # Without a bias, as the softmax would not see it; small, so that attention starts close to the mean.
        self.score = nn.Linear(SCORE_CHANNELS, heads, bias=False)
        nn.init.normal_(self.score.weight, std=0.01)

    def forward(self, frames: Tensor) -> Tensor:
        scores: Tensor = self.score(torch.tanh(self.hidden(frames)))
        return scores


def mean_over_time(frames: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, C) of each clip's own frames, of frames (B, T, C) and mask (B, T)."""
    return _kept(frames, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def std_over_time(frames: Tensor, mask: Tensor, mean: Tensor) -> Tensor:
    """The standard deviation (B, C) of each clip's own frames about their ``mean`` (B, C); 1e-4 where it is 0."""
    # Kept twice: the gradient of a square would carry a NaN from behind the end into the mean.
    variance = mean_over_time((_kept(frames, mask) - mean.unsqueeze(1)).square(), mask)
    return torch.sqrt(variance + EPSILON)


def _kept(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames with 0 behind each clip's end; not a product, since what stands there may be NaN."""
    return frames.masked_fill(~mask.unsqueeze(2), 0)


def _attention(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores (B, T, H) as weights that sum to 1 over a clip's own frames."""
    return scores.masked_fill(~mask.unsqueeze(2), -math.inf).softmax(dim=1)


def _weighted_mean(frames: Tensor, weights: Tensor) -> Tensor:
    """The mean (B, C) of frames (B, T, C) under each head's weights (B, T, H) for its share of the channels."""
    shares = frames.tensor_split(weights.shape[2], dim=2)
    means = [torch.einsum("bt,btc->bc", w, share) for w, share in zip(weights.unbind(dim=2), shares, strict=True)]
    return torch.cat(means, dim=1)


POOLINGS: dict[str, Callable[[int, int], Pooling]] = {
    "mean": MeanPooling,
    "mean_std": MeanStdPooling,
    "max": MaxPooling,
    "attentive": AttentivePooling,
    "attentive_stats": AttentiveStatsPooling,
    "queries": QueryPooling,
    "gru": GRUPooling,
}
