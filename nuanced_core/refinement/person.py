"""Refinement of a voice on clips of one person, a part of which is kept out to say what was gained.

Dimensions: E speaker embedding, S = 256 style.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE
from nuanced_core.config.settings import SpeakerEncoderName
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.kokoro.model import PACK_ROWS
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.people import PeopleTargets
from nuanced_core.refinement.refine import RefineSettings, refine

__all__ = ["Judge", "PersonRefinement", "default_judge", "hold_out", "refine_person"]

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.3  # of each clip, its end
LEAST_HELD_OUT, MOST_HELD_OUT = 1.5, 20.0  # s, of all clips together
MOST_SHARE = 0.5
PITCH_SECONDS = 60  # of the target in which pitch is tracked
MOST_STEPS = 10_000  # the time decides
LEAST_GAIN = 0.01  # of the cosine; less is within what other sentences would change
STOPPING, JUDGED = 3, 3  # sentences that decide when to stop, and others that are judged


@dataclass(frozen=True)
class Judge:
    """A speaker encoder that says what was gained, and the speaker encoders of a loss that does not see it."""

    name: str
    embed: Callable[[Tensor, int], Tensor]  # audio (samples,), rate in Hz → (E,) of norm 1
    loss_encoders: tuple[SpeakerEncoderName, ...]


@dataclass(frozen=True, eq=False)
class PersonRefinement:
    """The result of a refinement on clips of a person."""

    offset: Tensor  # (S,) on the CPU, added to the styles of all phoneme counts
    before: float  # cosine to the seconds that were kept out, by the judge
    after: float
    seconds: float  # that were kept out
    steps: int  # rounds and gradient steps that were taken

    @property
    def is_better(self) -> bool:
        """Whether the judge finds the refined voice more similar, by at least 0.01."""
        return self.after >= self.before + LEAST_GAIN


def default_judge(models: ModelSet) -> Judge:
    """Return Resemblyzer as the judge of a refinement by CAM++ alone."""
    return Judge("Resemblyzer", models.speaker_encoder("resemblyzer").embed, ("campplus",))


def hold_out(clips: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Split clips (samples,) at 16 kHz into what a refinement hears of each, and what is kept out of all.

    The ends are kept out: 30 % of each clip, more of short clips, at most 20 s of all.

    Returns:
        The beginnings, and the ends (samples,) one after another.
    """
    total = sum(len(clip) for clip in clips) / WHISPER_RATE
    share = min(max(HELD_OUT_SHARE, LEAST_HELD_OUT / total), MOST_SHARE, MOST_HELD_OUT / total)
    cuts = [round(len(clip) * (1 - share)) for clip in clips]
    kept_out = torch.cat([clip[cut:] for clip, cut in zip(clips, cuts, strict=True)])
    return [clip[:cut] for clip, cut in zip(clips, cuts, strict=True)], kept_out


def refine_person(
    models: ModelSet,
    start: Tensor,
    heard: Sequence[Tensor],
    held_out: Tensor,
    frame: StyleFrame,
    sentences: Sequence[str],
    other_sentences: Sequence[str],
    judge: Judge,
    *,
    seconds: float,
    surrogate: Surrogate | None = None,
) -> PersonRefinement:
    """Refine a voice towards what is heard of a person, and judge it by what is kept out.

    Args:
        start: (510, S), the rows of the voice's pack.
        heard: clips (samples,) at 16 kHz that the refinement hears.
        held_out: (samples,) at 16 kHz that only the judge hears.
        frame: coordinates of styles.
        sentences: phonemes of the sentences of the steps.
        other_sentences: phonemes of at least four other sentences; three decide when to stop, the next are judged.
        seconds: how long it may take, about.
        surrogate: the encoder's.

    Raises:
        AudioError: a part is silent, or too short for a speaker embedding.
        TrainingError: a loss is not finite.
    """
    device = models.device
    audio, rows = torch.cat([*heard]), start.to(device)
    embeddings = {name: models.speaker_encoder(name).embed(audio, WHISPER_RATE) for name in judge.loss_encoders}
    pitch = clip_pitch(audio[: PITCH_SECONDS * WHISPER_RATE], WHISPER_RATE)
    target = PeopleTargets(
        {name: embedding[None].to(device) for name, embedding in embeddings.items()},
        pitch[None].to(device),
        torch.full((1,), math.nan, device=device),
    )
    settings = RefineSettings(steps=MOST_STEPS, speaker_encoders=judge.loss_encoders)
    found = refine(
        models,
        lambda counts: rows[counts.clamp(1, PACK_ROWS) - 1],
        target,
        frame.to(device),
        sentences,
        other_sentences[:STOPPING],
        settings,
        surrogate=surrogate,
        seconds=seconds,
    )
    wanted = judge.embed(held_out, WHISPER_RATE)
    judged = other_sentences[STOPPING:][:JUDGED]
    before, after = (
        float(judge.embed(_spoken(models, rows + offset, judged), KOKORO_RATE) @ wanted)
        for offset in (torch.zeros_like(found.offset), found.offset)
    )
    return PersonRefinement(found.offset.cpu(), before, after, len(held_out) / WHISPER_RATE, found.steps)


@torch.no_grad()
def _spoken(models: ModelSet, rows: Tensor, sentences: Sequence[str]) -> Tensor:
    """Return sentences (samples,) at 24 kHz, one after another, in the voice with the rows (510, S)."""
    kokoro, spoken = models.kokoro, []
    for phonemes in sentences:
        style = rows[len(phonemes) - 1][None]
        text = kokoro.encode_text([phonemes])
        spoken.append(kokoro.speak(text, kokoro.prosody(text, style), style, [0]).item(0).cpu())
    return torch.cat(spoken)
