"""What an encoder has to beat: the nearest training voice, and ridge regression from the same features.

Both learn from pooled features of clips whose voices are known, in closed form and without Kokoro.

Dimensions: N training clips, M other clips, B batch, L layers, T feature frames, D Whisper channels,
C = 2 * L * D pooled channels, S = 256 style.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nuanced_core.kokoro.model import TIMBRE_SIZE

__all__ = ["PENALTIES", "NearestVoice", "Ridge", "Scale", "pooled_features"]

# Of a ridge, in units of the mean squared norm of a clip's features: 1e-4 all but interpolates, 100 all but ignores.
PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 5))
FOLDS = 8  # of the cross-validation that chooses a penalty


def pooled_features(features: Tensor, mask: Tensor) -> Tensor:
    """Mean and standard deviation over time (B, C) of features (B, L, T, D), mask (B, T) True where a frame is."""
    kept = mask[:, None, :, None]
    count = kept.sum(dim=2)
    mean = torch.where(kept, features, 0.0).sum(dim=2) / count  # (B, L, D)
    deviation = torch.where(kept, features - mean.unsqueeze(2), 0.0)
    std = (deviation.square().sum(dim=2) / count).sqrt()
    return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)


@dataclass(frozen=True)
class Scale:
    """What gives each pooled channel mean 0 and variance 1 over the training clips."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    @classmethod
    def fit(cls, features: Tensor) -> "Scale":
        """Of training clips' features (N, C); a channel that never changes is left as it is."""
        std = features.std(dim=0, correction=0)
        return cls(features.mean(dim=0), torch.where(std > 1e-6 * features.abs().amax(dim=0), std, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """Features (M, C), scaled."""
        return (features - self.mean) / self.std

    def distance(self, features: Tensor) -> Tensor:
        """How far (M,) clips lie from the training clips, as a multiple of how far these lie from their own mean."""
        return self(features).square().mean(dim=1).sqrt()


@dataclass(frozen=True)
class NearestVoice:
    """The training voice nearest in scaled features, each voice being the mean of its clips."""

    scale: Scale
    names: tuple[str, ...]
    centres: Tensor  # (voices, C)

    @classmethod
    def fit(cls, features: Tensor, voices: Sequence[str]) -> "NearestVoice":
        """Of training clips' features (N, C) and voices (N)."""
        scale = Scale.fit(features)
        scaled = scale(features)
        names = tuple(sorted(set(voices)))
        centres = [scaled[[i for i, voice in enumerate(voices) if voice == name]].mean(dim=0) for name in names]
        return cls(scale, names, torch.stack(centres))

    def __call__(self, features: Tensor) -> list[str]:
        """The names (M) of the voices nearest to features (M, C)."""
        nearest = torch.cdist(self.scale(features), self.centres).argmin(dim=1)
        return [self.names[i] for i in nearest.tolist()]


@dataclass(frozen=True)
class Ridge:
    """Ridge regression (Hoerl & Kennard 1970) from scaled features to style offsets, timbre and prosody apart.

    ``W = Xᵀ (X Xᵀ + λ I)⁻¹ (Y - mean Y)`` for each half; λ is the penalty whose squared error is least when whole
    voices are left out, of training voices alone.
    """

    scale: Scale
    weight: Tensor  # (C, S)
    bias: Tensor  # (S,)
    penalties: tuple[float, float]  # of the timbre and of the prosody half

    @classmethod
    def fit(
        cls, features: Tensor, offsets: Tensor, voices: Sequence[str], penalties: Sequence[float] = PENALTIES
    ) -> "Ridge":
        """Of training clips' features (N, C), offsets (N, S) of their styles from the mean voice, and voices (N)."""
        scale = Scale.fit(features.double())
        halves = (slice(0, TIMBRE_SIZE), slice(TIMBRE_SIZE, None))
        errors = [torch.zeros(len(penalties), dtype=torch.float64) for _ in halves]
        for held_out in _folds(voices):
            kept = ~held_out
            part = Scale.fit(features[kept].double())
            seen, unseen = part(features[kept].double()), part(features[held_out].double())
            targets, mean = offsets[kept].double(), offsets[kept].double().mean(dim=0)
            for i, penalty in enumerate(penalties):
                found = unseen @ _solve(seen, targets - mean, penalty) + mean
                wrong = (found - offsets[held_out].double()).square().sum(dim=0)
                for half, error in zip(halves, errors, strict=True):
                    error[i] += wrong[half].sum()
        chosen = [penalties[int(error.argmin())] for error in errors]
        bias = offsets.double().mean(dim=0)
        scaled = scale(features.double())
        weights = [
            _solve(scaled, (offsets.double() - bias)[:, half], penalty)
            for half, penalty in zip(halves, chosen, strict=True)
        ]
        return cls(
            Scale(scale.mean.float(), scale.std.float()),
            torch.cat(weights, dim=1).float(),
            bias.float(),
            (chosen[0], chosen[1]),
        )

    def __call__(self, features: Tensor) -> Tensor:
        """Offsets (M, S) from the mean voice, of features (M, C)."""
        return self.scale(features) @ self.weight + self.bias


def _solve(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights (C, S) of centred x (N, C) and y (N, S), in the dual: there are fewer clips than channels."""
    gram = x @ x.T
    strength = penalty * gram.diagonal().mean()
    dual: Tensor = torch.linalg.solve(gram + strength * torch.eye(len(x), dtype=x.dtype), y)
    return x.T @ dual


def _folds(voices: Sequence[str]) -> list[Tensor]:
    """Masks (N,) of the clips that are left out together: all those of some voices; every voice is left out once."""
    names = sorted(set(voices))
    return [
        torch.tensor([names.index(voice) % FOLDS == fold for voice in voices]) for fold in range(min(FOLDS, len(names)))
    ]
