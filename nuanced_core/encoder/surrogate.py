"""A surrogate of Kokoro and the speaker encoders: style → speaker embeddings and pitch, without speaking.

A step on it takes milliseconds where one through Kokoro takes seconds. Styles can deceive it, so several networks are
asked, and the styles stay where stock voices are (``StyleFrame.prior``).

Dimensions: B batch, M members, E speaker embedding, S = 256 style.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuanced_core.kokoro.model import STYLE_SIZE
from nuanced_core.kokoro.style_frame import StyleFrame

__all__ = ["Surrogate", "SurrogateNetwork"]

MEMBERS = 3

PITCH_CHANNELS = 2  # median in log2 Hz and spread in octaves of F0
WIDTH = 512
DROPOUT = 0.1
LEARNING_RATE = 0.03  # of Adam, in coordinates of the frame
PITCH_WEIGHT, SPREAD_WEIGHT, PRIOR_WEIGHT = 0.3, 0.15, 0.02  # beside 1 - cosine of each speaker encoder


class SurrogateNetwork(nn.Module):
    """A linear map plus a small network: offsets (B, S) → speaker embeddings and pitch.

    Args:
        sizes: E of each speaker encoder, by name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        channels = sum(self.sizes.values()) + PITCH_CHANNELS
        self.linear = nn.Linear(STYLE_SIZE, channels)
        self.network = nn.Sequential(
            *(nn.Linear(STYLE_SIZE, WIDTH), nn.GELU(), nn.Dropout(DROPOUT)),
            *(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT)),
            nn.Linear(WIDTH, channels),
        )
        self.register_buffer("mean", torch.zeros(channels))  # of the outputs
        self.register_buffer("std", torch.ones(channels))

    def forward(self, offsets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Predict embeddings (B, E) of norm 1 by speaker encoder, and pitch (B, 2)."""
        outputs = (self.linear(offsets) + self.network(offsets)) * self.std + self.mean
        *embeddings, pitch = outputs.split([*self.sizes.values(), PITCH_CHANNELS], dim=1)
        return {name: F.normalize(x, dim=1) for name, x in zip(self.sizes, embeddings, strict=True)}, pitch


class Surrogate(nn.Module):
    """Frozen networks that were fitted to the same clips from different initial weights.

    Args:
        frame: coordinates of the styles.
        sizes: E of each speaker encoder, by name.
    """

    def __init__(self, frame: StyleFrame, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.frame = frame
        self.members = nn.ModuleList(SurrogateNetwork(sizes) for _ in range(MEMBERS))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Surrogate":
        """Stay in eval mode: dropout served the fitting alone."""
        return super().train(False)

    def predict(self, offsets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Predict embeddings (B, E) of norm 1 by speaker encoder, and pitch (B, 2): the means of the members."""
        embeddings, pitch = zip(*(member(offsets) for member in self.members), strict=True)
        means = {name: F.normalize(sum(x[name] for x in embeddings), dim=1) for name in embeddings[0]}
        return means, torch.stack(pitch).mean(dim=0)

    def loss(self, offsets: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor) -> Tensor:
        """Compute how far the voices of offsets (B, S) are from what was heard, (B,): the mean over the members.

        The sum over speaker encoders of ``1 - cosine``, plus the weighted differences of pitch in octaves.

        Args:
            embeddings: (B, E) of norm 1, of some or all of the speaker encoders.
            pitch: (B, 2); NaN where it is unknown, which counts 0.
        """
        losses = []
        weights = pitch.new_tensor([PITCH_WEIGHT, SPREAD_WEIGHT])
        for member in self.members:
            found, found_pitch = member(offsets)
            unlike = torch.stack([1 - (found[name] * wanted).sum(dim=1) for name, wanted in embeddings.items()])
            # Not where() after the difference: its gradient would be NaN.
            difference = (found_pitch - torch.where(pitch.isnan(), found_pitch.detach(), pitch)).abs() * weights
            losses.append(unlike.sum(dim=0) + difference.sum(dim=1))
        return torch.stack(losses).mean(dim=0)

    @torch.enable_grad()
    def approach(self, offsets: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor, steps: int) -> Tensor:
        """Move offsets (B, S) by gradient steps towards voices that were heard; returns (B, S), detached.

        Each item moves as it would alone. Arguments are those of ``loss``.
        """
        moved = offsets.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=LEARNING_RATE)
        for _ in range(steps):
            prior = self.frame.priors(moved)
            total = (self.loss(moved, embeddings, pitch) + PRIOR_WEIGHT * prior).sum()
            (moved.grad,) = torch.autograd.grad(total, moved)
            optimizer.step()
        return moved.detach()
