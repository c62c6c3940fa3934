"""The second pass over a recording that is converted: its words, its curves, its level, and some of its speech."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE, is_silent
from nuanced_core.errors import AudioError
from nuanced_core.progress import progress_bar
from nuanced_core.speech.streams import Recording
from nuanced_core.transfer.curves import SourceCurves, hear_curves
from nuanced_core.transfer.loudness import block_loudness, integrated_loudness
from nuanced_core.transfer.words import Word

__all__ = ["Heard", "WordHearer", "hear"]

WHOLE_SECONDS = 120.0  # of speech, spread over the recording, that the style of the whole is taken from


class WordHearer(Protocol):
    """What hears words; ``Transcriber`` is one."""

    def words(self, audio: Tensor) -> list[Word]:
        """Return the words of audio (samples,) at 16 kHz of at most 30 s."""

    def check_language(self, audio: Tensor, place: str) -> None:
        """Raise AudioError if speech (samples,) at 16 kHz is not English."""


@dataclass(frozen=True)
class Heard:
    """What is heard in a recording; times are in seconds."""

    words: list[Word]
    curves: SourceCurves
    loudness: float  # LUFS
    speech: Tensor  # (samples,) at 16 kHz, at most ``WHOLE_SECONDS``, without the silence around it


class _SpreadSpeech:
    """Keeps at most ``WHOLE_SECONDS`` of speech: of every chunk, or of every second one, of every fourth one, …"""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor]] = []
        self._step, self._seen = 1, 0

    def add(self, part: Tensor) -> None:
        if self._seen % self._step == 0:
            self._parts.append((self._seen, part))
        self._seen += 1
        while len(self._parts) > 1 and sum(len(kept) for _, kept in self._parts) > WHOLE_SECONDS * WHISPER_RATE:
            self._step *= 2
            self._parts = [(index, kept) for index, kept in self._parts if index % self._step == 0]

    @property
    def joined(self) -> Tensor:
        return torch.cat([part for _, part in self._parts])


def hear(recording: Recording, hearer: WordHearer, *, has_text: bool) -> Heard:
    """Hear a recording in chunks.

    Args:
        has_text: the words are given; where Whisper hears none, one word without letters stands for what is loud.

    Raises:
        AudioError: there are no words in it, or those of another language.
    """
    words: list[Word] = []
    curves, levels, spread, start = [], list[float](), _SpreadSpeech(), 0
    with progress_bar("hearing, seconds", math.ceil(recording.seconds)) as advance:
        for chunk in recording.chunks():
            curves.append(hear_curves(chunk))
            levels += block_loudness(chunk, WHISPER_RATE)
            if not is_silent(chunk):
                found = hearer.words(chunk) or (_loud_span(curves[-1]) if has_text else [])
                if found:
                    part = chunk[int(found[0].start * WHISPER_RATE) : math.ceil(found[-1].end * WHISPER_RATE)]
                    if not words:
                        hearer.check_language(part, str(recording.path))
                    spread.add(part)
                offset = start / WHISPER_RATE
                words += [replace(word, start=word.start + offset, end=word.end + offset) for word in found]
            for _ in range(math.ceil((start + len(chunk)) / WHISPER_RATE) - math.ceil(start / WHISPER_RATE)):
                advance()
            start += len(chunk)
    if not words:
        raise AudioError(f"{recording.path}: no words were heard in it; give a recording of English speech")
    return Heard(words, SourceCurves.joined(curves), integrated_loudness(levels), spread.joined)


def _loud_span(curves: SourceCurves) -> list[Word]:
    loud = (torch.nonzero(curves.loud)[:, 0] / FRAMES_PER_SECOND).tolist()
    return [Word("", loud[0], loud[-1] + 1 / FRAMES_PER_SECOND)] if len(loud) > 1 else []
