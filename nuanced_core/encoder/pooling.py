"""Pooling strategies: reduce the feature frames of a clip of any length to one vector.

Contract (``tests/nuanced_core/encoder/test_pooling.py``): padding never affects the result, items of a batch are
independent, one frame is enough, gradients are finite. Attention is close to the mean at initialisation.

Dimensions: B batch, T feature frames, C channels, H heads.
"""

import math
from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor, nn

__all__ = [
    "EPSILON",
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
    "whole_mask",
]

SCORE_CHANNELS = 128  # hidden channels of a frame's score
GRU_CHANNELS = 128
EPSILON = 1e-8  # added to variances: the derivative of the root is infinite at 0, the variance of a single frame


class Pooling(nn.Module):
    """Base class: maps frames (B, T, C) and a mask (B, T), True at a clip's frames, to (B, ``out_channels``).

    A clip has at least one frame, and its frames come before its padding. All strategies are constructed from
    ``channels`` (C) and ``heads`` (H); only the attentive ones and the queries use ``heads``.
    """

    out_channels: int

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Pool frames (B, T, C) under a mask (B, T) to (B, out_channels)."""
        raise NotImplementedError

    def attention_weights(self, frames: Tensor, mask: Tensor) -> Tensor | None:
        """Return how each head weights the frames (B, T, H), or None if the strategy has no attention."""
        return None

    def blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """Pool the frames of one clip, given in blocks (1, t, C), to (1, out_channels).

        The result is that of the whole clip, except for rounding. Queries and the GRU keep all frames in memory, the
        others one block.
        """
        frames = torch.cat(list(blocks), dim=1)
        return self(frames, whole_mask(frames))  # type: ignore[no-any-return]


class MeanPooling(Pooling):
    """Mean over time."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return mean_over_time(frames, mask)

    def blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """See ``Pooling``."""
        return _weighted_moments(blocks, None)[0]


class MeanStdPooling(Pooling):
    """Mean and standard deviation over time (statistics pooling, Snyder et al. 2017)."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.out_channels = 2 * channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        mean = mean_over_time(frames, mask)
        return torch.cat([mean, std_over_time(frames, mask, mean)], dim=1)

    def blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """See ``Pooling``."""
        return torch.cat(_weighted_moments(blocks, None), dim=1)


class MaxPooling(Pooling):
    """Maximum of each channel over time."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return frames.masked_fill(~mask.unsqueeze(2), -math.inf).amax(dim=1)

    def blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """See ``Pooling``."""
        return reduce(torch.maximum, (frames.amax(dim=1) for frames in blocks))


class AttentivePooling(Pooling):
    """Mean weighted by learned attention; each head weights the frames for its own group of channels.

    The groups have as equal sizes as possible, so H need not divide C. Scores are computed as in Okabe et al. 2018: a
    tanh layer, then a linear one.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.attention = _FrameScores(channels, heads)
        self.out_channels = channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        masked = _zero_padding(frames, mask)
        return _weighted_mean(masked, _attention_weights(self.attention(masked), mask))

    def attention_weights(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return _attention_weights(self.attention(_zero_padding(frames, mask)), mask)

    def blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """See ``Pooling``."""
        return _weighted_moments(blocks, self.attention)[0]


class AttentiveStatsPooling(Pooling):
    """Attentive mean and standard deviation (Okabe et al. 2018), with heads as in ``AttentivePooling``."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.attention = _FrameScores(channels, heads)
        self.out_channels = 2 * channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        masked = _zero_padding(frames, mask)
        weights = _attention_weights(self.attention(masked), mask)  # (B, T, H)
        mean = _weighted_mean(masked, weights)
        variance = _weighted_mean((masked - mean.unsqueeze(1)).square(), weights)
        return torch.cat([mean, torch.sqrt(variance + EPSILON)], dim=1)

    def attention_weights(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return _attention_weights(self.attention(_zero_padding(frames, mask)), mask)

    def blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """See ``Pooling``."""
        return torch.cat(_weighted_moments(blocks, self.attention), dim=1)


class QueryPooling(Pooling):
    """Attention with H learned queries; each yields a weighted mean of all channels, and these are concatenated."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        # No bias: it would shift all scores of a query equally, which the softmax ignores.
        self.keys = nn.Linear(channels, SCORE_CHANNELS, bias=False)
        self.queries = nn.Parameter(torch.empty(heads, SCORE_CHANNELS))
        nn.init.normal_(self.queries, std=0.1)
        self.out_channels = heads * channels

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        masked = _zero_padding(frames, mask)
        return torch.einsum("bth,btc->bhc", self._weights(masked, mask), masked).flatten(1)

    def attention_weights(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        return self._weights(_zero_padding(frames, mask), mask)

    def _weights(self, masked: Tensor, mask: Tensor) -> Tensor:
        scores = self.keys(masked) @ self.queries.T / math.sqrt(SCORE_CHANNELS)  # (B, T, H)
        return _attention_weights(scores, mask)


class GRUPooling(Pooling):
    """State of a unidirectional GRU after a clip's last frame."""

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, GRU_CHANNELS, batch_first=True)
        self.out_channels = GRU_CHANNELS

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """See ``Pooling``."""
        # The GRU also runs over the padding: packing would need the lengths on the host, a synchronisation.
        states: Tensor = self.gru(_zero_padding(frames, mask))[0]  # (B, T, out_channels)
        last = mask.sum(dim=1) - 1
        return states[torch.arange(states.shape[0], device=states.device), last]


class _FrameScores(nn.Module):
    """Attention scores of each head, (B, T, H), from frames (B, T, C)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, SCORE_CHANNELS)
        # No bias, which the softmax would ignore; small weights, so that attention starts close to the mean.
        self.score = nn.Linear(SCORE_CHANNELS, heads, bias=False)
        nn.init.normal_(self.score.weight, std=0.01)

    def forward(self, frames: Tensor) -> Tensor:
        scores: Tensor = self.score(torch.tanh(self.hidden(frames)))
        return scores


def mean_over_time(frames: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, C) over each clip's own frames, for frames (B, T, C) and mask (B, T)."""
    return _zero_padding(frames, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def std_over_time(frames: Tensor, mask: Tensor, mean: Tensor) -> Tensor:
    """Return the standard deviation (B, C) of each clip's own frames around ``mean`` (B, C), or 1e-4 where it is 0."""
    # Mask before the square as well: its gradient would carry a NaN in the padding into the mean.
    variance = mean_over_time((_zero_padding(frames, mask) - mean.unsqueeze(1)).square(), mask)
    return torch.sqrt(variance + EPSILON)


def _zero_padding(frames: Tensor, mask: Tensor) -> Tensor:
    """Set the padding of frames to 0; not by a product, since padding may hold NaN."""
    return frames.masked_fill(~mask.unsqueeze(2), 0)


def _attention_weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Turn scores (B, T, H) into weights that sum to 1 over a clip's own frames."""
    return scores.masked_fill(~mask.unsqueeze(2), -math.inf).softmax(dim=1)


def _weighted_mean(frames: Tensor, weights: Tensor) -> Tensor:
    """Average frames (B, T, C) with each head's weights (B, T, H) for its group of channels: (B, C)."""
    groups = frames.tensor_split(weights.shape[2], dim=2)
    means = [torch.einsum("bt,btc->bc", w, group) for w, group in zip(weights.unbind(dim=2), groups, strict=True)]
    return torch.cat(means, dim=1)


def whole_mask(frames: Tensor) -> Tensor:
    """Return the mask (B, T) of clips without padding, for frames (B, T, C)."""
    return torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)


def _weighted_moments(blocks: Iterable[Tensor], score: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1, C) of frames in blocks (1, t, C), weighted by the softmax of scores.

    The softmax over all blocks is computed as in Milakov & Gimelshein 2018: what was summed is scaled down when a block
    has a larger score. ``score`` returns each head's scores (1, t, H) for its group of channels; None: equal weights.
    """
    largest: Tensor | float = -math.inf
    total: Tensor | float = 0.0
    moments: Tensor | float = 0.0
    for frames in blocks:
        x = frames[0].double()  # (t, C)
        scores = x.new_zeros(len(x), 1) if score is None else score(frames)[0].double()  # (t, H)
        largest, before = torch.maximum(scores.amax(dim=0), torch.as_tensor(largest).to(scores)), largest
        weights = torch.exp(scores - largest)
        scale = torch.exp(before - largest)  # (H,)
        groups = [group.shape[1] for group in x.tensor_split(scores.shape[1], dim=1)]
        of_channels = torch.tensor(groups, device=x.device)
        total = total * scale + weights.sum(dim=0)
        spread = weights.repeat_interleave(of_channels, dim=1)  # (t, C)
        sums = torch.stack([(spread * x).sum(dim=0), (spread * x.square()).sum(dim=0)])  # (2, C)
        moments = moments * scale.repeat_interleave(of_channels) + sums
        result = moments / total.repeat_interleave(of_channels)
    mean = result[0]
    std = torch.sqrt((result[1] - mean.square()).clamp(min=0) + EPSILON)
    return mean[None].float(), std[None].float()


POOLINGS: dict[str, Callable[[int, int], Pooling]] = {
    "mean": MeanPooling,
    "mean_std": MeanStdPooling,
    "max": MaxPooling,
    "attentive": AttentivePooling,
    "attentive_stats": AttentiveStatsPooling,
    "queries": QueryPooling,
    "gru": GRUPooling,
}
