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
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
# Beside 1 - cosine of each speaker encoder. Chosen on validation people (docs/LOG.md).
PITCH_WEIGHTS = 1.0, 0.5  # of median and spread
PRIOR_WEIGHT = 0.1


def kernel(offsets: Tensor, points: Tensor, linear: Tensor) -> Tensor:
    """Return the similarity (B, N) of scaled offsets (B, S) and points (N, S): a linear part and a Gaussian one."""
    products = offsets @ points.T
    squares = offsets.square().sum(dim=1, keepdim=True) + points.square().sum(dim=1) - 2 * products
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
        points, coefficients = self._scaled_points()
        return kernel(offsets * self.scales, points, self.linear) @ coefficients + self.mean

    def loss(self, offsets: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor) -> Tensor:
        """Compute how far the voices of offsets (B, S) are from what was heard: (B,).

        The sum over speaker encoders of ``1 - cosine``, plus the weighted differences of pitch in octaves.

        Args:
            embeddings: (B, E) of norm 1, of some or all of the speaker encoders.
            pitch: (B, 2); NaN where it is unknown, which counts 0.
        """
        return self._unlike(self.outputs(offsets), embeddings, pitch)

    def _scaled_points(self) -> tuple[Tensor, Tensor]:
        """Return the scaled points (N, S) and the coefficients (N, C) in the precision of the scales."""
        points = self.points * self.scales
        return points, self.coefficients.to(points.dtype)

    def _voices(self, outputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        *embeddings, pitch = torch.split(outputs, [*self.sizes.values(), PITCH_CHANNELS], dim=1)
        return {name: F.normalize(x, dim=1) for name, x in zip(self.sizes, embeddings, strict=True)}, pitch

    def _unlike(self, outputs: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor) -> Tensor:
        found, found_pitch = self._voices(outputs)
        unlike = torch.stack([1 - (found[name] * wanted).sum(dim=1) for name, wanted in embeddings.items()])
        weighted = known_difference(found_pitch, pitch) * pitch.new_tensor(PITCH_WEIGHTS)
        return unlike.sum(dim=0) + weighted.sum(dim=1)

    @torch.no_grad()
    def approach(
        self,
        offsets: Tensor,
        embeddings: Mapping[str, Tensor],
        pitch: Tensor,
        steps: int,
        prior: float = PRIOR_WEIGHT,
        anchor: float = 0.0,
    ) -> Tensor:
        """Move offsets (B, S) by steps of Adam (arXiv:1412.6980) towards voices that were heard; returns (B, S).

        Each item moves as it would alone. The result has no gradient.

        Args:
            embeddings, pitch: as in ``loss``.
            prior: weight of ``StyleFrame.priors``.
            anchor: weight of the same with ``offsets`` as the centre.
        """
        slopes, frame = self._slopes(embeddings, pitch), self.frame
        start = moved = offsets.detach()
        first, second = torch.zeros_like(start), torch.zeros_like(start)  # moments of the gradient
        for step in range(1, steps + 1):
            slope = slopes(moved) + prior * frame.priors_slope(moved)
            if anchor:
                slope = slope + anchor * frame.priors_slope(moved, start)
            first = ADAM_BETAS[0] * first + (1 - ADAM_BETAS[0]) * slope
            second = ADAM_BETAS[1] * second + (1 - ADAM_BETAS[1]) * slope.square()
            spread = second.sqrt() / (1 - ADAM_BETAS[1] ** step) ** 0.5 + ADAM_EPSILON
            moved = moved - LEARNING_RATE / (1 - ADAM_BETAS[0] ** step) * first / spread
        return moved

    def _slopes(self, embeddings: Mapping[str, Tensor], pitch: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the gradient (B, S) of ``loss`` as a function of offsets (B, S).

        It is written out, since ONNX cannot differentiate. What does not depend on the offsets is computed once.
        """
        points, coefficients = self._scaled_points()
        squares, width = points.square().sum(dim=1), STYLE_SIZE * KERNEL_WIDTH**2
        linear = self.linear / STYLE_SIZE

        def slopes(offsets: Tensor) -> Tensor:
            scaled = offsets * self.scales
            products = scaled @ points.T
            gaussian = torch.exp((2 * products - squares - scaled.square().sum(dim=1, keepdim=True)) / (2 * width))
            outputs = (linear * products + gaussian) @ coefficients + self.mean
            of_similarity = self._unlike_slopes(outputs, embeddings, pitch) @ coefficients.T  # (B, N)
            of_distance = of_similarity * gaussian / width
            pulled = (linear * of_similarity + of_distance) @ points - of_distance.sum(dim=1, keepdim=True) * scaled
            return pulled * self.scales

        return slopes

    def _unlike_slopes(self, outputs: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor) -> Tensor:
        """Return the gradient of ``_unlike`` with respect to the outputs (B, C)."""
        *found, found_pitch = torch.split(outputs, [*self.sizes.values(), PITCH_CHANNELS], dim=1)
        parts = []
        for name, embedding in zip(self.sizes, found, strict=True):
            if name not in embeddings:
                parts.append(torch.zeros_like(embedding))
                continue
            norm = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
            unit, wanted = embedding / norm, embeddings[name]
            parts.append(((unit * wanted).sum(dim=1, keepdim=True) * unit - wanted) / norm)
        difference = found_pitch - pitch
        signs = torch.where(difference.isnan(), torch.zeros_like(difference), difference.sign())
        return torch.cat([*parts, signs * signs.new_tensor(PITCH_WEIGHTS)], dim=1)
