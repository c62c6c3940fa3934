"""Fitting of a surrogate to clips that were rendered in many styles, and its errors on styles that it has not seen.

Dimensions: N clips, E speaker embedding, C all predicted channels, S = 256 style.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.encoder.surrogate import PENALTY, Surrogate, kernel
from nuanced_core.kokoro.style_frame import StyleFrame

__all__ = ["SurrogateErrors", "VoiceSamples", "fit_surrogate"]

# Learning of the scales: by the error of a surrogate of some clips on the others, drawn anew at each step.
SCALE_STEPS, SCALE_RATE, SCALE_PRIOR = 25, 0.05, 0.002
SCALE_UNSEEN_SHARE = 0.2
SCALE_CLIPS = (200, 1500)  # fewer say too little about 256 scales; of more, some are drawn
SCALE_PITCH_WEIGHT = 0.5  # beside 1 - cosine
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
        seed: of the choice of the voices that measure the error, and of the scales.

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
    errors = _errors(_fit(frame, seen, seed), _take(samples, held_out), seen)
    return _fit(frame, samples, seed), errors


def _fit(frame: StyleFrame, samples: VoiceSamples, seed: int) -> Surrogate:
    sizes = {name: x.shape[1] for name, x in samples.embeddings.items()}
    surrogate = Surrogate(frame, sizes, len(samples.offsets))
    known = samples.pitch.nanmean(dim=0).nan_to_num()
    pitch = torch.where(samples.pitch.isnan(), known, samples.pitch)
    outputs = torch.cat([*samples.embeddings.values(), pitch], dim=1)  # (N, C)
    if len(outputs) >= SCALE_CLIPS[0]:
        scales, linear = _learn_scales(samples.offsets, outputs, [*sizes.values()], seed)
        surrogate.scales.copy_(scales)
        surrogate.linear.copy_(linear)
    surrogate.points.copy_(samples.offsets)
    scaled = surrogate.points * surrogate.scales
    surrogate.mean.copy_(outputs.mean(dim=0))
    similarity = kernel(scaled, scaled, surrogate.linear).double()
    surrogate.coefficients.copy_(_solve(similarity, (outputs - surrogate.mean).double()))
    return surrogate


def _solve(similarity: Tensor, outputs: Tensor) -> Tensor:
    """Return the coefficients (N, C) of outputs (N, C) for the kernel (N, N) of the clips with each other."""
    ridge = similarity + PENALTY * torch.eye(len(similarity), dtype=similarity.dtype)
    coefficients: Tensor = torch.linalg.solve(ridge, outputs)
    return coefficients


@torch.enable_grad()
def _learn_scales(offsets: Tensor, outputs: Tensor, sizes: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Learn the scales (S,) and the weight of the kernel's linear part from offsets (N, S) and outputs (N, C)."""
    generator = torch.Generator().manual_seed(seed)
    log_scales = torch.zeros(offsets.shape[1], requires_grad=True)
    log_linear = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([log_scales, log_linear], lr=SCALE_RATE)
    for _ in range(SCALE_STEPS):
        drawn = torch.randperm(len(offsets), generator=generator)[: SCALE_CLIPS[1]]
        count = round(SCALE_UNSEEN_SHARE * len(drawn))
        unseen, seen = drawn[:count], drawn[count:]
        scaled, linear = offsets * log_scales.exp(), log_linear.exp()
        mean = outputs[seen].mean(dim=0)
        coefficients = _solve(kernel(scaled[seen], scaled[seen], linear), outputs[seen] - mean)
        found = kernel(scaled[unseen], scaled[seen], linear) @ coefficients + mean
        error = _error(found, outputs[unseen], sizes) + SCALE_PRIOR * log_scales.square().mean()
        log_scales.grad, log_linear.grad = torch.autograd.grad(error, (log_scales, log_linear))
        optimizer.step()
    return log_scales.detach().exp(), log_linear.detach().exp()


def _error(found: Tensor, true: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the error of outputs (N, C): the sum of 1 - cosine of the embeddings, and the weighted error of pitch."""
    parts = [*sizes, found.shape[1] - sum(sizes)]
    *embeddings, pitch = zip(torch.split(found, parts, dim=1), torch.split(true, parts, dim=1), strict=True)
    error: Tensor = SCALE_PITCH_WEIGHT * (pitch[0] - pitch[1]).abs().sum(dim=1).mean()
    for one, other in embeddings:
        error = error + (1 - F.cosine_similarity(one, other, dim=1)).mean()
    return error


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
