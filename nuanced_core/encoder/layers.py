"""Parts of the StyleEncoder: hidden layers, the embedding of a phoneme count, and the rows stored of a voice.

Dimensions: B batch, K knots.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

from nuanced_core.config.settings import Encoder
from nuanced_core.kokoro.model import PACK_ROWS

__all__ = ["ACTIVATIONS", "COUNT_CHANNELS", "KNOTS", "embed_counts", "knot_weights", "knots", "make_trunk"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
KNOTS = 32  # rows stored of each training voice; the others are interpolated
COUNT_CHANNELS = 8  # channels of the embedding of a phoneme count


class _HiddenLayer(nn.Module):
    """Linear layer, normalisation, activation, dropout; with a residual connection if ``encoder.residual`` is set.

    The residual connection requires as many input channels as ``encoder.width``.
    """

    def __init__(self, channels: int, settings: Encoder) -> None:
        super().__init__()
        norms = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": _BatchNorm}
        # Batch normalisation would cancel a bias.
        self.linear = nn.Linear(channels, settings.width, bias=settings.normalisation != "batch")
        self.normalisation = norms[settings.normalisation](settings.width)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout)
        self.residual = settings.residual and channels == settings.width

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels) to (B, width)."""
        y: Tensor = self.dropout(self.activation(self.normalisation(self.linear(x))))
        return x + y if self.residual else y


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that uses the running statistics for a batch of one, which has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, channels)."""
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def make_trunk(channels: int, settings: Encoder) -> nn.Sequential:
    """Make the hidden layers: (B, channels) → (B, width)."""
    widths = [channels, *[settings.width] * (settings.depth - 1)]
    return nn.Sequential(*(_HiddenLayer(width, settings) for width in widths))


def embed_counts(rows: Tensor) -> Tensor:
    """Embed the phoneme counts of rows (B,) as the first terms of a cosine series in their logarithm, (B, 8)."""
    log_count = torch.log(rows + 1.0) / math.log(PACK_ROWS)  # 0 for 1 phoneme, 1 for 510
    return torch.cos(torch.pi * log_count.unsqueeze(1) * torch.arange(1, COUNT_CHANNELS + 1, device=rows.device))


def knots() -> Tensor:
    """Return the stored rows (K,): from 0 to 509, closer together for few phonemes."""
    linear_rows = 10  # knots are evenly spaced below this row; above it, their distance grows with the row
    end = math.log1p((PACK_ROWS - 1) / linear_rows)
    return (torch.linspace(0, end, KNOTS, dtype=torch.float64).expm1() * linear_rows).round().long()


@cache
def knot_weights() -> Tensor:
    """Return the weight of each knot for each row, (510, K): linear interpolation between neighbours."""
    with torch.device("cpu"):  # on the meta device, where parameters are counted, this loads TorchDynamo for seconds
        places, rows = knots(), torch.arange(PACK_ROWS)
        right = torch.searchsorted(places, rows, right=True).clamp(max=KNOTS - 1)
        left = right - 1
        fraction = ((rows - places[left]) / (places[right] - places[left])).unsqueeze(1)
        identity = torch.eye(KNOTS)
        return identity[left] * (1 - fraction) + identity[right] * fraction
