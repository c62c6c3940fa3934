"""What of a person's recordings is heard by an encoder, and what its result is compared with."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, load_audio
from nuanced_core.data.cache import Cache
from nuanced_core.data.model_set import ModelSet
from nuanced_core.people.recordings import READ_SECONDS, HeardRecording, HearingSettings, RecordingHearer

__all__ = ["Excerpt", "Hear", "Person", "Skipped", "find_person", "recording_hearer"]

logger = logging.getLogger(__name__)

MAX_SECONDS = 30  # of a recording
MAX_COMPARED = 4  # recordings of a person beside the heard one
MIN_HALF_SECONDS = 2.0  # of an only recording, whose halves are compared

Hear = Callable[[Path, str], HeardRecording | str]  # file, speaker → what is known of it, or why it cannot be used
Skipped = list[tuple[Path, str]]  # files that cannot be used, and why


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A recording, or a half of it."""

    file: Path
    audio: Tensor  # (samples,) at 16 kHz


@dataclass(frozen=True, eq=False)
class Person:
    """One person, heard once."""

    speaker: str
    heard: Excerpt
    compared: tuple[Excerpt, ...]
    rate: float  # phonemes per second of speech in the heard recording; NaN if unknown


def recording_hearer(models: ModelSet, cache: Cache) -> Hear:
    """Return the function that checks and measures recordings, or finds in the cache what it has measured before."""
    hearer = RecordingHearer(models, cache, HearingSettings(MAX_SECONDS, ()))

    def hear(file: Path, speaker: str) -> HeardRecording | str:
        found = hearer.find(file, speaker)
        if found is None:
            hearer.hear(file)
            found = hearer.find(file, speaker)
        return "the cache does not keep what was heard of it" if found is None else found

    return hear


def find_person(speaker: str, files: Sequence[Path], hear: Hear) -> tuple[Person | None, Skipped]:
    """Choose what is heard of a person and what is compared with it.

    The first of the files that can be used is heard, and compared with the next four. Of an only one, the first half is
    heard and compared with the second. Of each recording at most 30 s count, and at most 5 minutes are read.

    Returns:
        The person, or None if no file can be used; and the files that cannot be used, with the reasons.

    Raises:
        AudioError: a file that could be used before can no longer be read.
    """
    usable: list[HeardRecording] = []
    skipped: Skipped = []
    for file in files:
        if len(usable) > MAX_COMPARED:
            break
        found = hear(file, speaker)
        if isinstance(found, str):
            skipped.append((file, found))
        else:
            usable.append(found)
    excerpts = [Excerpt(one.file, _load(one.file)) for one in usable]
    if len(excerpts) == 1:
        (only,) = excerpts
        seconds = len(only.audio) / WHISPER_RATE
        if seconds < 2 * MIN_HALF_SECONDS:
            reason = f"{seconds:.1f} s: the halves of an only recording are compared; record 4 s, or another one"
            return None, [*skipped, (only.file, reason)]
        excerpts = [Excerpt(only.file, half) for half in only.audio.tensor_split(2)]
    if not excerpts:
        return None, skipped
    return Person(speaker, excerpts[0], tuple(excerpts[1:]), usable[0].rate), skipped


def _load(file: Path) -> Tensor:
    return load_audio(file, WHISPER_RATE, READ_SECONDS)[: MAX_SECONDS * WHISPER_RATE].clone()
