"""Baselines that predict a style from Whisper features: the nearest training voice, and ridge regression.

Both are fitted to pooled features of clips whose voices are known, in closed form and without Kokoro.

Dimensions: N training clips, M other clips, B batch, L layers, T feature frames, D Whisper channels,
C = 2 * L * D pooled channels, S = 256 style.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nuanced_core.kokoro.model import PACK_ROWS, TIMBRE_SIZE

__all__ = ["PENALTIES", "FeatureScaler", "NearestVoice", "Ridge", "StyleBaselines", "pooled_blocks", "pooled_features"]

# Ridge penalties, in units of the mean squared norm of a clip's features. 1e-4 almost interpolates the training clips,
# 100 almost ignores the features.
PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 5))
FOLDS = 8  # of the cross-validation that selects a penalty


def pooled_features(features: Tensor, mask: Tensor) -> Tensor:
    """Return the mean and standard deviation over time of each feature channel.

    Args:
        features: (B, L, T, D).
        mask: (B, T), True where a clip has a frame.

    Returns:
        (B, C), the means first.
    """
    valid = mask[:, None, :, None]
    count = valid.sum(dim=2)
    mean = torch.where(valid, features, 0.0).sum(dim=2) / count  # (B, L, D)
    deviation = torch.where(valid, features - mean.unsqueeze(2), 0.0)
    std = (deviation.square().sum(dim=2) / count).sqrt()
    return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)


def pooled_blocks(blocks: Iterable[Tensor]) -> Tensor:
    """Return the pooled features (1, C) of one clip whose features are given in blocks (L, t, D).

    They are those of the whole clip, except for rounding if there are several blocks.
    """
    frames, parts = [], []
    for block in blocks:
        frames.append(block.shape[1])
        parts.append(pooled_features(block[None], torch.ones(1, block.shape[1], dtype=torch.bool, device=block.device)))
    if len(parts) == 1:
        return parts[0]
    means, stds = torch.cat(parts).double().chunk(2, dim=1)  # (blocks, L * D)
    weights = torch.tensor(frames, device=means.device)[:, None] / sum(frames)
    mean = (weights * means).sum(dim=0)
    std = (weights * (stds.square() + (means - mean).square())).sum(dim=0).sqrt()
    return torch.cat([mean, std])[None].float()


@dataclass(frozen=True)
class FeatureScaler:
    """Standardise pooled features: each channel has mean 0 and variance 1 over the training clips."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    @classmethod
    def fit(cls, features: Tensor) -> "FeatureScaler":
        """Fit to the features (N, C) of training clips; a constant channel is centred but not scaled."""
        std = features.std(dim=0, correction=0)
        return cls(features.mean(dim=0), torch.where(std > 1e-6 * features.abs().amax(dim=0), std, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """Scale features (M, C)."""
        return (features - self.mean) / self.std

    def distance(self, features: Tensor) -> Tensor:
        """Return the distance (M,) of features (M, C) from the mean training clip.

        The unit is the root mean square distance of the training clips from their mean.
        """
        return self(features).square().mean(dim=1).sqrt()


@dataclass(frozen=True)
class NearestVoice:
    """Nearest-centroid classifier of training voices; a centroid is the mean of a voice's scaled features."""

    scaler: FeatureScaler
    names: tuple[str, ...]
    centroids: Tensor  # (voices, C)

    @classmethod
    def fit(cls, features: Tensor, voices: Sequence[str]) -> "NearestVoice":
        """Fit to the features (N, C) and voices (N) of training clips."""
        scaler = FeatureScaler.fit(features)
        scaled = scaler(features)
        names = tuple(sorted(set(voices)))
        centroids = [scaled[[i for i, voice in enumerate(voices) if voice == name]].mean(dim=0) for name in names]
        return cls(scaler, names, torch.stack(centroids))

    def __call__(self, features: Tensor) -> list[str]:
        """Return the names (M) of the voices nearest to features (M, C)."""
        nearest = torch.cdist(self.scaler(features), self.centroids).argmin(dim=1)
        return [self.names[i] for i in nearest.tolist()]


@dataclass(frozen=True)
class Ridge:
    """Ridge regression (Hoerl & Kennard 1970) from scaled features to style offsets, timbre and prosody separately.

    ``W = Xᵀ (X Xᵀ + λ I)⁻¹ (Y - mean Y)`` for each half. λ is the penalty with the least squared error in a
    cross-validation that leaves out whole training voices.
    """

    scaler: FeatureScaler
    weight: Tensor  # (C, S)
    bias: Tensor  # (S,)
    penalties: tuple[float, float]  # of the timbre half and of the prosody half

    @classmethod
    def fit(
        cls, features: Tensor, offsets: Tensor, voices: Sequence[str], penalties: Sequence[float] = PENALTIES
    ) -> "Ridge":
        """Fit to training clips.

        Args:
            features: (N, C).
            offsets: (N, S), differences of the clips' styles from the mean voice.
            voices: (N).
            penalties: candidates for λ.
        """
        halves = (slice(0, TIMBRE_SIZE), slice(TIMBRE_SIZE, None))
        errors = [torch.zeros(len(penalties), dtype=torch.float64) for _ in halves]
        for held_out in _folds(voices):
            kept = ~held_out
            fold_scaler = FeatureScaler.fit(features[kept].double())
            train, validation = fold_scaler(features[kept].double()), fold_scaler(features[held_out].double())
            targets, mean = offsets[kept].double(), offsets[kept].double().mean(dim=0)
            for i, penalty in enumerate(penalties):
                predicted = validation @ _solve(train, targets - mean, penalty) + mean
                squared_error = (predicted - offsets[held_out].double()).square().sum(dim=0)
                for half, error in zip(halves, errors, strict=True):
                    error[i] += squared_error[half].sum()
        best = [penalties[int(error.argmin())] for error in errors]
        scaler = FeatureScaler.fit(features.double())
        bias = offsets.double().mean(dim=0)
        scaled = scaler(features.double())
        weights = [
            _solve(scaled, (offsets.double() - bias)[:, half], penalty)
            for half, penalty in zip(halves, best, strict=True)
        ]
        return cls(
            FeatureScaler(scaler.mean.float(), scaler.std.float()),
            torch.cat(weights, dim=1).float(),
            bias.float(),
            (best[0], best[1]),
        )

    def __call__(self, features: Tensor) -> Tensor:
        """Return offsets (M, S) from the mean voice for features (M, C)."""
        return self.scaler(features) @ self.weight + self.bias


@dataclass(frozen=True)
class StyleBaselines:
    """Nearest voice and ridge regression, fitted to the same clips, as predictors of whole styles."""

    nearest: NearestVoice
    ridge: Ridge
    mean_pack: Tensor  # (510, S)
    packs: Mapping[str, Tensor]  # (510, S) by training voice

    @classmethod
    def fit(
        cls,
        features: Tensor,
        styles: Tensor,
        phoneme_counts: Tensor,
        voices: Sequence[str],
        packs: Mapping[str, Tensor],
        mean_pack: Tensor,
        penalties: Sequence[float] = PENALTIES,
    ) -> "StyleBaselines":
        """Fit to training clips: features (N, C), styles (N, S), phoneme counts (N,) and voices (N)."""
        offsets = styles - mean_pack[_rows(phoneme_counts)]
        return cls(
            NearestVoice.fit(features, voices), Ridge.fit(features, offsets, voices, penalties), mean_pack, packs
        )

    def styles(self, features: Tensor, phoneme_counts: Tensor) -> dict[str, Tensor]:
        """Return the styles (M, S) of ``mean``, ``nearest`` and ``ridge`` for features (M, C) and counts (M,)."""
        rows = _rows(phoneme_counts)
        mean = self.mean_pack[rows]
        nearest = [self.packs[name][row] for name, row in zip(self.nearest(features), rows.tolist(), strict=True)]
        return {"mean": mean, "nearest": torch.stack(nearest), "ridge": mean + self.ridge(features)}


def _rows(phoneme_counts: Tensor) -> Tensor:
    return phoneme_counts.clamp(1, PACK_ROWS) - 1


def _solve(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Return weights (C, S) for centred x (N, C) and y (N, S); solves the dual, as there are fewer clips than
    channels."""
    gram = x @ x.T
    strength = penalty * gram.diagonal().mean().clamp(min=1e-12)  # 0 if all clips are alike, as a single one is
    dual: Tensor = torch.linalg.solve(gram + strength * torch.eye(len(x), dtype=x.dtype), y)
    return x.T @ dual


def _folds(voices: Sequence[str]) -> list[Tensor]:
    """Return one mask (N,) per fold, True for the clips left out: all clips of some voices, each voice in one fold.

    One voice has no fold.
    """
    names = sorted(set(voices))
    if len(names) < 2:
        return []
    return [
        torch.tensor([names.index(voice) % FOLDS == fold for voice in voices]) for fold in range(min(FOLDS, len(names)))
    ]
