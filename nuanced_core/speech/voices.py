"""A voice from clips of a person, as a pack; and its refinement.

Dimensions: P channels after pooling, E channels of speaker features, S = 256 style.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.config.settings import PITCH
from nuanced_core.encoder.recording import pooled_recording
from nuanced_core.hearing.speaker_features import heard_voice, speaker_features
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.people.clips import Clip, load_clips
from nuanced_core.refinement.person import Judge, default_judge, hold_out, refine_person
from nuanced_core.speech.models import SpeechModels
from nuanced_core.text.sentences import load_sentences

__all__ = ["Voice", "encode_clips", "pooled_clips", "refine_voice", "voice_from_clips"]

logger = logging.getLogger(__name__)

PREFERRED_PHONEMES = range(25, 71)  # of the sentences of a refinement: 2 to 5 s of speech
LEAST_SENTENCES = 6  # three decide when to stop, three are judged


@dataclass(frozen=True, eq=False)
class Voice:
    """A person's voice."""

    pack: Tensor  # (510, 1, 256) float32 on the CPU
    notes: tuple[str, ...]  # a line for each thing that was noticed in the clips
    seconds: float  # of speech in the clips
    clips: tuple[Clip, ...]
    refinement: str = ""  # a line about what a refinement has gained


def voice_from_clips(speech: SpeechModels, clips: Sequence[Path | str | Tensor]) -> Voice:
    """Return the voice of clips of one person, together 3 s to 10 min.

    Args:
        clips: sound files, or audio (samples,) at 16 kHz. They are weighted by their seconds of speech.

    Raises:
        AudioError: see ``nuanced_core.people.clips.load_clips``.
        WeightsError: a speaker encoder is not available.
    """
    loaded = load_clips(speech.models, clips)
    notes = tuple(note for clip in loaded for note in clip.notes)
    pack = encode_clips(speech, [clip.audio for clip in loaded], [clip.seconds for clip in loaded])
    return Voice(pack, notes, sum(clip.seconds for clip in loaded), tuple(loaded))


@torch.no_grad()
def encode_clips(speech: SpeechModels, clips: Sequence[Tensor], seconds: Sequence[float]) -> Tensor:
    """Return the pack (510, 1, 256), on the CPU, of clips (samples,) at 16 kHz with seconds of speech."""
    return speech.encoder.pack_of(pooled_clips(speech, clips, seconds)).float().cpu()


@torch.no_grad()
def pooled_clips(speech: SpeechModels, clips: Sequence[Tensor], seconds: Sequence[float]) -> Tensor:
    """Return the input (1, P + E) of ``encoder.pack_of`` for clips (samples,) at 16 kHz, weighted by seconds of speech.

    It is the mean of the clips' pooled features. That of the speaker embeddings is scaled to norm 1 again.
    """
    encoder = speech.encoder
    found = torch.cat([pooled_recording(encoder, speech.models, clip) for clip in clips])  # (clips, P + E)
    weights = torch.tensor(seconds).to(found)
    pooled = (weights / weights.sum()) @ found
    channels = encoder.config.speaker_channels
    if channels and len(clips) > 1:
        features = encoder.config.features
        embeddings, pitch = heard_voice(features, pooled[None, -channels:].cpu())
        parts = {name: F.normalize(embedding, dim=1)[0] for name, embedding in embeddings.items()}
        pooled[-channels:] = speaker_features(features, {**parts, PITCH: pitch[0]}).to(pooled)
    return pooled[None]


def refine_voice(speech: SpeechModels, voice: Voice, minutes: float, judge: Judge | None = None) -> Voice:
    """Refine a voice on its clips, and return the refined or the given one, whichever the judge finds better.

    The ends of the clips are kept out: the refinement starts from the voice of the beginnings, and what is judged, by a
    speaker encoder that its loss does not see, is the similarity to the ends. ``refinement`` says what was gained.

    Args:
        minutes: how long it may take, about.
        judge: by default Resemblyzer, of a loss by CAM++.

    Raises:
        AudioError: a part of the clips is silent, or too short for a speaker embedding.
        TrainingError: a loss is not finite.
    """
    models, judge = speech.models, judge or default_judge(speech.models)
    logger.info("refining the voice for about %g minutes", minutes)
    heard, held_out = hold_out([clip.audio for clip in voice.clips])
    start = encode_clips(speech, heard, [clip.seconds for clip in voice.clips])[:, 0]
    stock = models.voices.training_voices("all", speech.run.data.val_voices)
    found = refine_person(
        models,
        start,
        heard,
        held_out,
        StyleFrame(torch.stack([models.voices.pack(name) for name in stock])),
        _phonemes(speech, "train"),
        _phonemes(speech, "validation"),
        judge,
        seconds=60 * minutes,
        surrogate=speech.encoder.surrogate,
    )
    kept = "the refined voice is kept" if found.is_better else "no gain: the voice without refinement is kept"
    line = (
        f"refinement: similarity to {found.seconds:.1f} s that it did not hear, by {judge.name}, which its loss did "
        f"not see: {found.before:.3f} before, {found.after:.3f} after {found.steps} steps; {kept}"
    )
    pack = (start + found.offset)[:, None] if found.is_better else voice.pack
    return replace(voice, pack=pack, refinement=line)


def _phonemes(speech: SpeechModels, split: str) -> list[str]:
    """Return the phonemes of a split's sentences of 2 to 5 s, or of all if there are too few."""
    phonemizer = speech.models.phonemizer
    phonemes = [phonemizer(text) for text in load_sentences(split)]
    preferred = [p for p in phonemes if len(p) in PREFERRED_PHONEMES]
    return preferred if len(preferred) >= LEAST_SENTENCES else phonemes
