"""Fitting of a surrogate to clips that were rendered in many styles, and its errors on styles that it has not seen.

Dimensions: N clips, B batch, E speaker embedding, S = 256 style.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.encoder.surrogate import Surrogate, SurrogateNetwork
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.people import pitch_loss, speaker_loss

__all__ = ["SurrogateErrors", "VoiceSamples", "fit_surrogate"]

EPOCHS, MIN_STEPS = 60, 600
BATCH = 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
UNSEEN_SHARE = 0.1  # of the clips, by which the error is measured
MIN_SPREAD = 1e-3


class VoiceSamples(NamedTuple):
    """Styles, and what is heard of the clips that were spoken in them."""

    offsets: Tensor  # (N, S), see StyleFrame
    embeddings: Mapping[str, Tensor]  # (N, E) of norm 1, by the speaker encoder's name
    pitch: Tensor  # (N, 2) median in log2 Hz and spread in octaves of F0; NaN if unvoiced


class SurrogateErrors(NamedTuple):
    """Errors on clips with styles that the surrogate was not fitted to, and of the mean of the others as prediction."""

    cosine: Mapping[str, float]  # mean cosine of predicted and true embeddings, by speaker encoder
    mean_cosine: Mapping[str, float]  # the same for the mean embedding
    semitones: float  # median error of the median F0
    mean_semitones: float


def fit_surrogate(
    frame: StyleFrame, samples: VoiceSamples, groups: Sequence[str], seed: int = 0
) -> tuple[Surrogate, SurrogateErrors]:
    """Fit a surrogate to clips, and measure it on clips of voices that it was not fitted to.

    Args:
        frame: coordinates of the samples' offsets.
        groups: the voice of each clip; a tenth of the voices measure the error.
        seed: of the initial weights, the batches and the choice of voices.

    Returns:
        The surrogate, and its errors.

    Raises:
        ValueError: there are fewer than two voices.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(f"a surrogate needs clips of at least two voices, not {len(names)}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(names), generator=generator).tolist()
    unseen = {names[i] for i in order[: max(1, round(UNSEEN_SHARE * len(names)))]}
    held_out = torch.tensor([group in unseen for group in groups])
    seen = _take(samples, ~held_out)
    surrogate = Surrogate(frame, {name: x.shape[1] for name, x in samples.embeddings.items()})
    with torch.random.fork_rng(devices=[]):  # of the initial weights and of dropout
        torch.manual_seed(seed)
        surrogate.members.load_state_dict(
            torch.nn.ModuleList(_fit_member(seen, generator) for _ in surrogate.members).state_dict()
        )
    return surrogate, _errors(surrogate, _take(samples, held_out), seen)


def _fit_member(samples: VoiceSamples, generator: torch.Generator) -> SurrogateNetwork:
    """Fit a network with new initial weights to the samples, on the CPU."""
    network = SurrogateNetwork({name: x.shape[1] for name, x in samples.embeddings.items()}).train()
    _calibrate(network, samples)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    clips = len(samples.offsets)
    steps = max(MIN_STEPS, EPOCHS * clips // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        batch = _take(samples, torch.randint(clips, (min(BATCH, clips),), generator=generator))
        embeddings, pitch = network(batch.offsets)
        loss = speaker_loss(embeddings, batch.embeddings) + pitch_loss(pitch, batch.pitch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network


@torch.no_grad()
def _calibrate(network: SurrogateNetwork, samples: VoiceSamples) -> None:
    """Store mean and spread of the outputs; a speaker encoder's channels have one spread in common."""
    known = samples.pitch[~samples.pitch.isnan().any(dim=1)]
    parts = [*samples.embeddings.values()]
    network.mean.copy_(torch.cat([x.mean(dim=0) for x in (*parts, known)]))
    spreads = [x.std(dim=0).square().mean().sqrt().expand(x.shape[1]) for x in parts]
    network.std.copy_(torch.cat([*spreads, known.std(dim=0)]).clamp(min=MIN_SPREAD))


@torch.no_grad()
def _errors(surrogate: Surrogate, unseen: VoiceSamples, seen: VoiceSamples) -> SurrogateErrors:
    embeddings, pitch = surrogate.predict(unseen.offsets)

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
