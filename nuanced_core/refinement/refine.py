"""Refinement of a predicted voice on one person's recording, by what Kokoro speaks in it.

One offset is added to the styles of all phoneme counts. In the first rounds it is found on the encoder's surrogate, if
it has one: Kokoro speaks with the offset, the surrogate is corrected by what is heard, and a better one is found on it.
Then gradient steps through Kokoro and speaker encoders follow. Both speak training sentences; other sentences decide
when to stop and which offset is kept.

Dimensions: B sentences, E speaker embedding, S = 256 style.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import Loss, Settings, SpeakerEncoderName
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.errors import TrainingError
from nuanced_core.hashing import derived_seed
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.people import PeopleTargets, SpokenPeopleLosses
from nuanced_core.refinement.corrections import CorrectedSurrogate
from nuanced_core.speakers.channel import random_channel

__all__ = ["RefineSettings", "RefinedVoice", "refine"]

logger = logging.getLogger(__name__)

# Of the rounds on a surrogate, chosen on validation people (docs/LOG.md).
ROUND_STEPS = 150  # on the surrogate, from the start
ROUND_SCATTER = 0.15  # of the offsets that are spoken, in standard deviations of the stock voices
ROUND_ANCHOR = 0.03  # weight of the distance from the start
ROUND_PHONEMES = 40  # for which the start's style says where it is on the surrogate

Styles = Callable[[Tensor], Tensor]  # phoneme counts (B,) → styles (B, S)


class RefineSettings(Settings):
    """How long and by what a voice is refined."""

    rounds: Annotated[int, Field(ge=0)] = Field(
        8, description="sentences that are spoken to correct the surrogate, if there is one, before the gradient steps"
    )
    steps: Annotated[int, Field(ge=0)] = Field(12, description="gradient steps at most")
    batch: Annotated[int, Field(ge=1)] = Field(1, description="sentences that Kokoro speaks in a step")
    frames: Annotated[int, Field(ge=40)] = Field(60, description="Kokoro frames (25 ms) of each that are heard")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        0.05, description="of Adam, in standard deviations of the stock voices"
    )
    check_every: Annotated[int, Field(ge=1)] = Field(6, description="steps between measurements on other sentences")
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
    """The result of a refinement; rounds on the surrogate and gradient steps are counted together."""

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
    surrogate: Surrogate | None = None,
    seed: int = 0,
    seconds: float = math.inf,
) -> RefinedVoice:
    """Move a voice towards a person's.

    The loss is the sum over speaker encoders of ``1 - cosine`` to the person's embedding through a random channel, plus
    the weighted differences of pitch and distance from the stock voices. On the held-out sentences channel, windows and
    noise are always the same. What is measured, and kept, is the mean of the offsets since the last measurement.

    Args:
        start: the voice, for example an encoder's: phoneme counts (B,) → styles (B, S). It need not be differentiable.
        target: of one person (B = 1), with an embedding by each of the settings' speaker encoders.
        frame: coordinates of styles, of the stock voices that may be trained on.
        sentences: phonemes of the sentences of the rounds and steps, drawn at random.
        held_out: phonemes of the sentences that decide when to stop.
        surrogate: the encoder's, in the same frame; if it knows none of the speaker encoders, there are no rounds.
        seed: of everything that is drawn.
        seconds: after which no further round or step begins; the last measurement follows.

    Raises:
        TrainingError: a loss is not finite.
        ValueError: there are no sentences.
    """
    settings = settings or RefineSettings()
    if not sentences or not held_out:
        raise ValueError("a refinement needs sentences for its steps, and others that decide when to stop")
    end = time.monotonic() + seconds
    refiner = _Refiner(models, start, target, frame, settings, seed)
    best, best_step, losses = refiner.offset.detach().clone(), 0, [(0, refiner.measure(refiner.offset, held_out))]
    step, since = 0, list[Tensor]()
    if settings.rounds and surrogate is not None and set(surrogate.sizes) & set(settings.speaker_encoders):
        found, step = refiner.find_on(surrogate, sentences, end)
        losses.append((step, refiner.measure(found, held_out)))
        if losses[-1][1] < losses[0][1]:
            best, best_step = found, step
            refiner.offset.data.copy_(found)
    last, without_gain = step + settings.steps, 0
    while step < last and without_gain < settings.patience and (since or time.monotonic() < end):
        step += 1
        refiner.take_step(sentences, step)
        since.append(refiner.offset.detach().clone())
        if len(since) < settings.check_every and step < last and time.monotonic() < end:
            continue
        offset = torch.stack(since).mean(dim=0)
        losses.append((step, refiner.measure(offset, held_out)))
        logger.debug("refinement: step %d, loss %.4f", *losses[-1])
        without_gain, since = without_gain + 1, []
        if losses[-1][1] < min(loss for _, loss in losses[:-1]):
            best, best_step, without_gain = offset, step, 0
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
        self.models, self.device = models, models.device
        self.start, self.target, self.frame, self.settings, self.seed = start, target, frame, settings, seed
        weights = Loss(speaker=1.0, pitch=settings.pitch, speaker_encoders=settings.speaker_encoders)
        self.losses = SpokenPeopleLosses(models, weights, settings.frames)
        self.offset = torch.zeros(frame.std.shape, device=self.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.offset], lr=settings.learning_rate)

    @torch.no_grad()
    def find_on(self, surrogate: Surrogate, sentences: Sequence[str], end: float) -> tuple[Tensor, int]:
        """Return the offset (S,) that is found on a surrogate, and the number of rounds.

        The surrogate is corrected in each round by a sentence that is spoken. No further round begins after ``end``, in
        seconds of the monotonic clock.
        """
        wanted: dict[str, Tensor] = {
            n: self.target.embeddings[n] for n in surrogate.sizes if n in self.settings.speaker_encoders
        }
        corrections = CorrectedSurrogate(surrogate)
        count = torch.tensor([ROUND_PHONEMES], device=self.device)
        start = self.frame.offsets(self.start(count), count)  # (1, S)
        offset = torch.zeros_like(self.offset)
        for number in range(self.settings.rounds):
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "round", number))
            phonemes = sentences[int(torch.randint(len(sentences), (), generator=generator))]
            scatter = torch.randn(offset.shape, generator=generator).to(self.device)
            corrections.add(*self._spoken(phonemes, offset + ROUND_SCATTER * scatter, [*surrogate.sizes], generator))
            steps = ROUND_STEPS, self.settings.prior, ROUND_ANCHOR
            found = corrections.corrected().approach(start, wanted, self.target.pitch, *steps)
            offset = (found - start)[0]
            if time.monotonic() >= end:
                break
        return offset, number + 1

    def _spoken(
        self, phonemes: str, offset: Tensor, names: Sequence[str], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Speak a sentence with an offset (S,); return where its style lies, its embeddings (E,) and its pitch (2,).

        An embedding is the mean of that of the audio and that through a random channel, as training clips have it.
        """
        count = torch.tensor([len(phonemes)], device=self.device)
        style = self.start(count) + offset * self.frame.std
        kokoro = self.models.kokoro
        text = kokoro.encode_text([phonemes])
        audio = kokoro.speak(text, kokoro.prosody(text, style), style, [0]).item(0)
        audio = resample(audio, KOKORO_RATE, WHISPER_RATE)
        both = audio, random_channel(audio[None], generator)[0]
        embeddings = {}
        for name in names:
            encoder = self.models.speaker_encoder(name)
            vectors = torch.stack([encoder.embed(one, WHISPER_RATE) for one in both])
            embeddings[name] = F.normalize(vectors.mean(dim=0), dim=0).to(self.device)
        pitch = clip_pitch(audio, WHISPER_RATE).to(self.device)
        return self.frame.offsets(style, count)[0], embeddings, pitch

    def take_step(self, sentences: Sequence[str], step: int) -> None:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, step))
        drawn = torch.randint(len(sentences), (self.settings.batch,), generator=generator).tolist()
        loss = self._loss([sentences[i] for i in drawn], self.offset, generator)
        if not torch.isfinite(loss):
            raise _not_finite(f"step {step}", float(loss))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def measure(self, offset: Tensor, sentences: Sequence[str]) -> float:
        """Return the loss of an offset (S,) on sentences, whose windows, noise and channel are always the same."""
        losses = []
        for number, sentence in enumerate(sentences):
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "held out", number))
            losses.append(float(self._loss([sentence], offset, generator)))
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise _not_finite("held-out sentences", loss)
        return loss

    def _loss(self, phonemes: Sequence[str], offset: Tensor, generator: torch.Generator) -> Tensor:
        counts = torch.tensor([len(p) for p in phonemes], device=self.device)
        with torch.no_grad():
            start = self.start(counts)
        styles = start + offset * self.frame.std
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
