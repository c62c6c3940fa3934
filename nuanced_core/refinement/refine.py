"""Refinement of a predicted voice by gradient steps through Kokoro and speaker encoders, on one person's recording.

One offset is added to the styles of all phoneme counts. Steps speak windows of training sentences; other sentences
decide when to stop and which offset is kept.

Dimensions: B sentences, E speaker embedding, S = 256 style.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from nuanced_core.config.settings import Loss, Settings, SpeakerEncoderName
from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import TrainingError
from nuanced_core.hashing import derived_seed
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.people import PeopleTargets, SpokenPeopleLosses

__all__ = ["RefineSettings", "RefinedVoice", "refine"]

logger = logging.getLogger(__name__)

Styles = Callable[[Tensor], Tensor]  # phoneme counts (B,) → styles (B, S)


class RefineSettings(Settings):
    """How long and by what a voice is refined."""

    steps: Annotated[int, Field(ge=0)] = Field(20, description="gradient steps at most")
    batch: Annotated[int, Field(ge=1)] = Field(1, description="sentences that Kokoro speaks in a step")
    frames: Annotated[int, Field(ge=40)] = Field(60, description="Kokoro frames (25 ms) of each that are heard")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        0.1, description="of Adam, in standard deviations of the stock voices"
    )
    check_every: Annotated[int, Field(ge=1)] = Field(5, description="steps between measurements on other sentences")
    patience: Annotated[int, Field(ge=1)] = Field(
        2, description="measurements in a row without a lower loss after which the refinement stops"
    )
    speaker_encoders: tuple[SpeakerEncoderName, ...] = Field(
        ("campplus", "resemblyzer"), min_length=1, description="speaker encoders of the loss"
    )
    pitch: Annotated[float, Field(ge=0)] = Field(0.3, description="weight of median and spread of F0, in octaves")
    prior: Annotated[float, Field(ge=0)] = Field(
        0.02, description="weight of the distance from the stock voices, see StyleFrame.priors"
    )


@dataclass(frozen=True)
class RefinedVoice:
    """The result of a refinement."""

    offset: Tensor  # (S,) added to the styles of all phoneme counts
    steps: int  # that were taken
    best_step: int  # after which the offset was kept; 0: the start
    losses: tuple[tuple[int, float], ...]  # (step, loss on the other sentences) of each measurement


def refine(
    models: ModelSet,
    start: Styles,
    target: PeopleTargets,
    frame: StyleFrame,
    sentences: Sequence[str],
    held_out: Sequence[str],
    settings: RefineSettings | None = None,
    *,
    seed: int = 0,
) -> RefinedVoice:
    """Move a voice towards a person's.

    The loss is the sum over speaker encoders of ``1 - cosine`` to the person's embedding through a random channel, plus
    the weighted differences of pitch and distance from the stock voices. On the held-out sentences channel, windows and
    noise are always the same, so that measurements can be compared.

    Args:
        start: the voice, for example an encoder's: phoneme counts (B,) → styles (B, S). It need not be differentiable.
        target: of one person (B = 1), with an embedding by each of the settings' speaker encoders.
        frame: coordinates of styles, of the stock voices that may be trained on.
        sentences: phonemes of the sentences of the steps, drawn at random.
        held_out: phonemes of the sentences that decide when to stop.
        seed: of everything that is drawn.

    Raises:
        TrainingError: a loss is not finite.
        ValueError: there are no sentences.
    """
    settings = settings or RefineSettings()
    if not sentences or not held_out:
        raise ValueError("a refinement needs sentences for its steps, and others that decide when to stop")
    refiner = _Refiner(models, start, target, frame, settings, seed)
    best, best_step, losses = refiner.offset.detach().clone(), 0, [(0, refiner.measure(held_out))]
    without_gain = step = 0
    while step < settings.steps and without_gain < settings.patience:
        step += 1
        refiner.take_step(sentences, step)
        if step % settings.check_every and step < settings.steps:
            continue
        losses.append((step, refiner.measure(held_out)))
        logger.debug("refinement: step %d, loss %.4f on held-out sentences", *losses[-1])
        without_gain += 1
        if losses[-1][1] < min(loss for _, loss in losses[:-1]):
            best, best_step, without_gain = refiner.offset.detach().clone(), step, 0
    return RefinedVoice(best * frame.std, step, best_step, tuple(losses))


class _Refiner:
    """The offset of a refinement, in coordinates of the frame, and its optimizer."""

    def __init__(
        self,
        models: ModelSet,
        start: Styles,
        target: PeopleTargets,
        frame: StyleFrame,
        settings: RefineSettings,
        seed: int,
    ) -> None:
        self.start, self.target, self.frame, self.settings, self.seed = start, target, frame, settings, seed
        self.device = models.device
        weights = Loss(speaker=1.0, pitch=settings.pitch, speaker_encoders=settings.speaker_encoders)
        self.losses = SpokenPeopleLosses(models, weights, settings.frames)
        self.offset = torch.zeros(frame.std.shape, device=self.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.offset], lr=settings.learning_rate)

    def take_step(self, sentences: Sequence[str], step: int) -> None:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, step))
        drawn = torch.randint(len(sentences), (self.settings.batch,), generator=generator).tolist()
        loss = self._loss([sentences[i] for i in drawn], generator)
        if not torch.isfinite(loss):
            raise _not_finite(f"step {step}", float(loss))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def measure(self, sentences: Sequence[str]) -> float:
        """Return the loss on sentences, each with the same window, noise and channel at every call."""
        losses = []
        for number, sentence in enumerate(sentences):
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "held out", number))
            losses.append(float(self._loss([sentence], generator)))
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise _not_finite("held-out sentences", loss)
        return loss

    def _loss(self, phonemes: Sequence[str], generator: torch.Generator) -> Tensor:
        counts = torch.tensor([len(p) for p in phonemes], device=self.device)
        with torch.no_grad():
            start = self.start(counts)
        styles = start + self.offset * self.frame.std
        terms = self.losses(phonemes, styles, _repeated(self.target, len(phonemes)), generator)
        prior = self.frame.priors(self.frame.offsets(styles, counts)).mean()
        return terms["speaker"] + self.settings.pitch * terms.get("pitch", 0.0) + self.settings.prior * prior


def _not_finite(place: str, loss: float) -> TrainingError:
    return TrainingError(f"refinement, {place}: the loss is {loss}; lower learning_rate")


def _repeated(target: PeopleTargets, count: int) -> PeopleTargets:
    return PeopleTargets(
        {name: x.expand(count, -1) for name, x in target.embeddings.items()},
        target.pitch.expand(count, -1),
        target.rate.expand(count),
    )
