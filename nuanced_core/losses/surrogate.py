"""Fitting of a surrogate to clips that were rendered in many styles, and its errors on styles that it has not seen.

Dimensions: N clips, E speaker embedding, C all predicted channels, S = 256 style.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.kokoro.style_frame import StyleFrame

__all__ = ["SurrogateErrors", "VoiceSamples", "fit_surrogate"]

PENALTY = 1.0  # of the ridge regression
UNSEEN_SHARE = 0.1  # of the voices, by which the error is measured


class VoiceSamples(NamedTuple):
    """Styles, and what is heard of the clips that were spoken in them."""

    offsets: Tensor  # (N, S), see StyleFrame
    embeddings: Mapping[str, Tensor]  # (N, E) of norm 1, by the speaker encoder's name
    pitch: Tensor  # (N, 2) median in log2 Hz and spread in octaves of F0; NaN if unvoiced


class SurrogateErrors(NamedTuple):
    """Errors on clips of voices that the surrogate was not fitted to, and of the mean of the others as prediction."""

    cosine: Mapping[str, float]  # mean cosine of predicted and true embeddings, by speaker encoder
    mean_cosine: Mapping[str, float]  # the same for the mean embedding
    semitones: float  # median error of the median F0; NaN if no clip is voiced
    mean_semitones: float


def fit_surrogate(
    frame: StyleFrame, samples: VoiceSamples, groups: Sequence[str], seed: int = 0
) -> tuple[Surrogate, SurrogateErrors]:
    """Fit a surrogate to clips; its errors are those of one that is fitted to nine tenths of the voices.

    Args:
        frame: coordinates of the samples' offsets.
        groups: the voice of each clip.
        seed: of the choice of the voices that measure the error.

    Returns:
        The surrogate, and its errors.

    Raises:
        ValueError: there are fewer than two voices.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(f"a surrogate needs clips of at least two voices, not {len(names)}")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    unseen = {names[i] for i in order[: max(1, round(UNSEEN_SHARE * len(names)))]}
    held_out = torch.tensor([group in unseen for group in groups])
    seen = _take(samples, ~held_out)
    errors = _errors(_fit(frame, seen), _take(samples, held_out), seen)
    return _fit(frame, samples), errors


@torch.no_grad()
def _fit(frame: StyleFrame, samples: VoiceSamples) -> Surrogate:
    surrogate = Surrogate(frame, {name: x.shape[1] for name, x in samples.embeddings.items()}, len(samples.offsets))
    surrogate.points.copy_(samples.offsets)
    known = samples.pitch.nanmean(dim=0).nan_to_num()
    pitch = torch.where(samples.pitch.isnan(), known, samples.pitch)
    outputs = torch.cat([*samples.embeddings.values(), pitch], dim=1).double()  # (N, C)
    kernel = surrogate.kernel(samples.offsets).double()
    surrogate.mean.copy_(outputs.mean(dim=0))
    ridge = kernel + PENALTY * torch.eye(len(kernel), dtype=torch.float64)
    surrogate.coefficients.copy_(torch.linalg.solve(ridge, outputs - outputs.mean(dim=0)))
    return surrogate


@torch.no_grad()
def _errors(surrogate: Surrogate, unseen: VoiceSamples, seen: VoiceSamples) -> SurrogateErrors:
    embeddings, pitch = surrogate(unseen.offsets)

    def cosines(predicted: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float((x * unseen.embeddings[name]).sum(dim=1).mean()) for name, x in predicted.items()}

    def semitones(predicted: Tensor) -> float:
        error = (12 * (predicted - unseen.pitch)[:, 0]).abs()
        known = error[~error.isnan()]
        return float(known.median()) if len(known) else math.nan

    means = {name: F.normalize(x.mean(dim=0), dim=0) for name, x in seen.embeddings.items()}
    return SurrogateErrors(
        cosines(embeddings), cosines(means), semitones(pitch), semitones(seen.pitch.nanmedian(dim=0).values)
    )


def _take(samples: VoiceSamples, index: Tensor) -> VoiceSamples:
    embeddings = {name: x[index] for name, x in samples.embeddings.items()}
    return VoiceSamples(samples.offsets[index], embeddings, samples.pitch[index])
