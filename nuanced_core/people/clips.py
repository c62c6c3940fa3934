"""Clips of one person for a voice: loaded, checked, and described in one line for each thing that is wrong with them.

Dimensions: P pieces of a clip, E speaker embedding.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE, is_silent, load_audio
from nuanced_core.errors import AudioError
from nuanced_core.hearing.pitch import loud_frames, track_pitch
from nuanced_core.people.measures import SAMPLES, speech_frames
from nuanced_core.people.recordings import CHECKED_BY, LEAST_SIMILARITY, MIN_SPEECH_SECONDS, SIMILARITY_SECONDS
from nuanced_core.sound_files import sound_seconds
from nuanced_core.speakers.encoders import SpeakerEncoder
from nuanced_core.speakers.levels import speech_only

__all__ = ["MAX_SECONDS", "MIN_SECONDS", "Clip", "load_clips", "speech_to_background"]

MIN_SECONDS, MAX_SECONDS = 3.0, 600.0  # of all clips together
LEAST_SNR = 15.0  # dB
PITCH_SECONDS = 60  # of a clip's speech in which a voice is looked for
PIECE_SECONDS = 1.5  # of speech
MOST_PIECES = 24
# Cosine of the means of two groups of pieces. The least of 14 readers of LibriSpeech is 0.73; the highest of pairs of
# them, 10 s and 3 s or in turns of 3 s, 0.52.
LEAST_GROUP_SIMILARITY = 0.6
LEAST_GROUP = 2  # pieces; a single one that differs is more often a noise, or a part without a voice
_TALKATIVE = ("nuanced_core.audio", "nuanced_core.sound_files")  # loggers whose warnings become a clip's notes


class SpeakerModels(Protocol):
    """The models that check a clip; ``ModelSet`` has them."""

    def speaker_encoder(self, name: str) -> SpeakerEncoder:
        """Return a speaker encoder."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip of a person's speech."""

    name: str  # its path, or "clip N"
    audio: Tensor  # (samples,) at 16 kHz, pauses shortened to 0.6 s
    seconds: float  # of speech
    notes: tuple[str, ...]  # a line for each thing that was noticed


def load_clips(models: SpeakerModels, clips: Sequence[Path | str | Tensor]) -> list[Clip]:
    """Load and check clips of one person, together 3 s to 10 min.

    Noise, clipping, and two people in one clip or in different ones are noted. Clips without a voice are left out with
    a note, unless there is no other.

    Args:
        clips: sound files, or audio (samples,) at 16 kHz.

    Raises:
        AudioError: a file cannot be read, a clip is silent or has samples that are not finite, the clips are too
            short or too long, or none has enough speech.
        WeightsError: the speaker encoder that finds two people is not available.
    """
    if not clips:
        raise AudioError("there is no clip; give at least one")
    promised = (len(c) / WHISPER_RATE if isinstance(c, Tensor) else sound_seconds(Path(c)) for c in clips)
    _check_seconds(sum(promised), clips, least=0.0)  # before hours of sound are decoded
    loaded = [_load(clip, number) for number, clip in enumerate(clips, start=1)]
    _check_seconds(sum(len(audio) for _, audio, _ in loaded) / WHISPER_RATE, clips)
    found, rejected = [], []
    for name, audio, notes in loaded:
        try:
            found.append(_check(models, name, audio, notes))
        except AudioError as error:
            rejected.append(str(error))
    if not found:
        raise AudioError(rejected[0])
    if len(found) > 1 and (note := _different_people(models, found)):
        rejected.append(note)
    if rejected:
        first = found[0]
        found[0] = Clip(first.name, first.audio, first.seconds, (*first.notes, *rejected))
    return found


def speech_to_background(audio: Tensor) -> float:
    """Return the level of speech above that of the quietest tenth of audio (samples,) at 16 kHz, in dB."""
    frames = audio[: len(audio) // SAMPLES * SAMPLES].view(-1, SAMPLES)
    power = (frames - audio.mean()).square().mean(dim=1)
    loud = loud_frames(audio)[: len(power)]
    speech = power[loud].mean() if loud.any() else power.mean()
    return float(10 * (speech / torch.quantile(power, 0.1).clamp(min=1e-12)).log10())


def _load(clip: Path | str | Tensor, number: int) -> tuple[str, Tensor, list[str]]:
    """Return the name of a clip, its audio (samples,) at 16 kHz, and what was noticed while it was read."""
    if not isinstance(clip, Tensor):
        with _collected_warnings() as notes:
            return str(clip), load_audio(Path(clip), WHISPER_RATE), notes
    name, audio = f"clip {number}", clip.detach().float().cpu()
    if audio.ndim != 1:
        raise AudioError(f"{name}: shape {tuple(audio.shape)} is not (samples,); give mono audio at 16 kHz")
    if not torch.isfinite(audio).all():
        raise AudioError(f"{name}: has samples that are not numbers; record it again")
    if len(audio) == 0 or is_silent(audio):
        raise AudioError(f"{name}: is {'silent' if len(audio) else 'empty'}; record it again")
    return name, audio, []


def _check_seconds(seconds: float, clips: Sequence[Path | str | Tensor], least: float = MIN_SECONDS) -> None:
    first = clips[0]
    name = "the clips: " if len(clips) > 1 or isinstance(first, Tensor) else f"{first}: "
    if seconds > MAX_SECONDS:
        raise AudioError(f"{name}{seconds / 60:.0f} min is too long; give at most {MAX_SECONDS / 60:.0f} min of it")
    if seconds < least:
        raise AudioError(f"{name}{seconds:.2f} s is too short; give at least {least:g} s of speech")


def _check(models: SpeakerModels, name: str, audio: Tensor, notes: Sequence[str]) -> Clip:
    """Check audio (samples,) of a clip.

    Raises:
        AudioError: there is no voice in it, or too little speech.
    """
    heard = speech_only(audio)
    voiced = int((track_pitch(heard[: PITCH_SECONDS * WHISPER_RATE], WHISPER_RATE) > 0).sum())
    if not voiced:
        raise AudioError(f"{name}: there is no voice in it; give a clip in which the person speaks")
    seconds = float(speech_frames(heard).sum()) / FRAMES_PER_SECOND
    if seconds < MIN_SPEECH_SECONDS:
        raise AudioError(f"{name}: only {seconds:.1f} s of speech; give at least {MIN_SECONDS:g} s")
    noticed = [*notes]
    if (snr := speech_to_background(audio)) < LEAST_SNR:
        noticed.append(
            f"{name}: noise: the speech is only {snr:.0f} dB above the background; record it in a quiet room"
        )
    encoder = models.speaker_encoder(CHECKED_BY)
    if (similarity := _similarity_within(encoder, heard)) is not None:
        noticed.append(
            f"{name}: two people seem to speak in it (similarity {similarity:.2f}); cut out one of them, "
            "or the voice is a mixture"
        )
    return Clip(name, heard, seconds, tuple(noticed))


def _similarity_within(encoder: SpeakerEncoder, speech: Tensor) -> float | None:
    """Return how similar two parts of speech (samples,) sound, if that is too little for one person; else None."""
    count = min(MOST_PIECES, int(len(speech) / (PIECE_SECONDS * WHISPER_RATE)))
    if count >= 2 * LEAST_GROUP:
        similarity, least = group_similarity(_embeddings(encoder, speech, count)), LEAST_GROUP_SIMILARITY
    else:
        halves = _embeddings(encoder, speech, 2)
        seconds = float(speech_frames(speech).sum()) / FRAMES_PER_SECOND / 2
        similarity = float(halves[0] @ halves[1])
        least = float(np.interp(seconds, SIMILARITY_SECONDS, LEAST_SIMILARITY))
    return similarity if similarity < least else None


def _embeddings(encoder: SpeakerEncoder, speech: Tensor, count: int) -> Tensor:
    """Return the speaker embeddings (P, E) of equal pieces of speech (samples,)."""
    pieces = speech[: len(speech) // count * count].view(count, -1)
    return torch.stack([encoder.embed(piece, WHISPER_RATE) for piece in pieces])


def group_similarity(embeddings: Tensor) -> float:
    """Return the cosine of the means of the two groups (2-means) of embeddings (P, E) of norm 1, P at least 2.

    It is 1 if a group has less than two of them.
    """
    similar = embeddings @ embeddings.T
    first, second = divmod(int(similar.argmin()), len(embeddings))
    centres = embeddings[[first, second]]
    for _ in range(8):
        nearest = (embeddings @ centres.T).argmax(dim=1)
        if int(torch.bincount(nearest, minlength=2).min()) < LEAST_GROUP:
            return 1.0
        centres = torch.stack([F.normalize(embeddings[nearest == group].mean(dim=0), dim=0) for group in (0, 1)])
    return float(centres[0] @ centres[1])


def _different_people(models: SpeakerModels, clips: Sequence[Clip]) -> str | None:
    encoder = models.speaker_encoder(CHECKED_BY)
    embeddings = torch.stack([encoder.embed(clip.audio, WHISPER_RATE) for clip in clips])
    similar = embeddings @ embeddings.T
    for index, clip in enumerate(clips[1:], start=1):
        seconds = min(clip.seconds, clips[0].seconds)
        least = float(np.interp(seconds, SIMILARITY_SECONDS, LEAST_SIMILARITY))
        if (found := float(similar[0, index])) < least:
            return (
                f"{clips[0].name} and {clip.name}: two people seem to speak in them (similarity {found:.2f}); "
                "give clips of one person, or the voice is a mixture"
            )
    return None


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings that this thread logs about a file, instead of logging them."""
    notes: list[str] = []
    thread = threading.get_ident()

    def collect(record: logging.LogRecord) -> bool:
        if record.thread != thread or record.levelno < logging.WARNING:
            return True
        notes.append(record.getMessage())
        return False

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    for talkative in loggers:
        talkative.addFilter(collect)
    try:
        yield notes
    finally:
        for talkative in loggers:
            talkative.removeFilter(collect)
