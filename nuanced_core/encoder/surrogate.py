"""A surrogate of Kokoro and the speaker encoders: style → speaker embeddings and pitch, without speaking.

It is a kernel ridge regression on clips that were rendered in many styles, which for some hundred clips predicts better
than a network, and for 1,600 as well (docs/LOG.md). Each channel of a style has a learned scale, since few of them
decide what is heard. A step on it takes milliseconds where one through Kokoro takes seconds. Styles can deceive it, so
they stay near stock voices (``StyleFrame.priors``).

Dimensions: B batch, N clips, E speaker embedding, C all predicted channels, S = 256 style.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuanced_core.hearing.pitch import known_difference
from nuanced_core.hearing.speaker_features import PITCH_CHANNELS
from nuanced_core.kokoro.model import STYLE_SIZE
from nuanced_core.kokoro.style_frame import StyleFrame

__all__ = ["PENALTY", "Surrogate", "kernel"]

# Root mean square over the scaled channels of the distance at which two styles become unlike.
KERNEL_WIDTH = 0.8
PENALTY = 1.0  # of the ridge regression
LEARNING_RATE = 0.03  # of Adam, in coordinates of the frame
# Beside 1 - cosine of each speaker encoder. Chosen on validation people (docs/LOG.md).
PITCH_WEIGHT, SPREAD_WEIGHT, PRIOR_WEIGHT = 1.0, 0.5, 0.1


def kernel(offsets: Tensor, points: Tensor, linear: Tensor) -> Tensor:
    """Return the similarity (B, N) of scaled offsets (B, S) and points (N, S): a linear part and a Gaussian one."""
    return _similarity(offsets, points, points.square().sum(dim=1), linear)


def _similarity(offsets: Tensor, points: Tensor, squares: Tensor, linear: Tensor) -> Tensor:
    products = offsets @ points.T
    squares = offsets.square().sum(dim=1, keepdim=True) + squares - 2 * products
    return linear * products / STYLE_SIZE + torch.exp(-squares / (2 * STYLE_SIZE * KERNEL_WIDTH**2))


class Surrogate(nn.Module):
    """Kernel ridge regression: offsets (B, S) → speaker embeddings and pitch.

    Args:
        frame: coordinates of the styles.
        sizes: E of each speaker encoder, by name.
        clips: N, the number of clips that it is fitted to.
    """

    points: Tensor  # (N, S) offsets of the clips' styles
    coefficients: Tensor  # (N, C)
    mean: Tensor  # (C,)
    scales: Tensor  # (S,) of the channels of an offset
    linear: Tensor  # () weight of the linear part

    def __init__(self, frame: StyleFrame, sizes: Mapping[str, int], clips: int) -> None:
        super().__init__()
        self.frame = frame
        self.sizes = dict(sizes)
        channels = sum(self.sizes.values()) + PITCH_CHANNELS
        # In float16, for small exports: that moves no prediction by more than its error.
        self.register_buffer("points", torch.zeros(clips, STYLE_SIZE, dtype=torch.float16))
        self.register_buffer("coefficients", torch.zeros(clips, channels, dtype=torch.float16))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scales", torch.ones(STYLE_SIZE))
        self.register_buffer("linear", torch.tensor(1.0))

    def forward(self, offsets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Predict embeddings (B, E) of norm 1 by speaker encoder, and pitch (B, 2)."""
        return self._voices(self.outputs(offsets))

    def outputs(self, offsets: Tensor) -> Tensor:
        """Predict all channels (B, C): embeddings whose norm is not yet 1, then pitch."""
        return self._predictor()(offsets)

    def loss(self, offsets: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor) -> Tensor:
        """Compute how far the voices of offsets (B, S) are from what was heard: (B,).

        The sum over speaker encoders of ``1 - cosine``, plus the weighted differences of pitch in octaves.

        Args:
            embeddings: (B, E) of norm 1, of some or all of the speaker encoders.
            pitch: (B, 2); NaN where it is unknown, which counts 0.
        """
        return self._unlike(self.outputs(offsets), embeddings, pitch)

    def _predictor(self) -> Callable[[Tensor], Tensor]:
        """Return ``outputs``, with what does not depend on the offsets computed once for all its calls."""
        points = self.points * self.scales
        squares, coefficients = points.square().sum(dim=1), self.coefficients.to(points.dtype)

        def predict(offsets: Tensor) -> Tensor:
            similarity = _similarity(offsets * self.scales, points, squares, self.linear)
            return similarity @ coefficients + self.mean

        return predict

    def _voices(self, outputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        *embeddings, pitch = torch.split(outputs, [*self.sizes.values(), PITCH_CHANNELS], dim=1)
        return {name: F.normalize(x, dim=1) for name, x in zip(self.sizes, embeddings, strict=True)}, pitch

    def _unlike(self, outputs: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor) -> Tensor:
        found, found_pitch = self._voices(outputs)
        unlike = torch.stack([1 - (found[name] * wanted).sum(dim=1) for name, wanted in embeddings.items()])
        weighted = known_difference(found_pitch, pitch) * pitch.new_tensor([PITCH_WEIGHT, SPREAD_WEIGHT])
        return unlike.sum(dim=0) + weighted.sum(dim=1)

    @torch.enable_grad()
    def approach(
        self,
        offsets: Tensor,
        embeddings: Mapping[str, Tensor],
        pitch: Tensor,
        steps: int,
        prior: float = PRIOR_WEIGHT,
        anchor: float = 0.0,
    ) -> Tensor:
        """Move offsets (B, S) by gradient steps towards voices that were heard; returns (B, S), detached.

        Each item moves as it would alone.

        Args:
            embeddings, pitch: as in ``loss``.
            prior: weight of ``StyleFrame.priors``.
            anchor: weight of the same with ``offsets`` as the centre.
        """
        start = offsets.detach()
        moved = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=LEARNING_RATE)
        predict = self._predictor()
        for _ in range(steps):
            total = self._unlike(predict(moved), embeddings, pitch) + prior * self.frame.priors(moved)
            if anchor:
                total = total + anchor * self.frame.priors(moved, start)
            (moved.grad,) = torch.autograd.grad(total.sum(), moved)
            optimizer.step()
        return moved.detach()
