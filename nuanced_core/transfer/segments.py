"""Segments of a recording: phrases between pauses, each of which gets a style of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from nuanced_core.transfer.words import Word

__all__ = ["Segment", "make_segments"]

PAUSE = 0.3  # seconds between two words that always separate two segments
SHORT = 1.2  # seconds; a shorter segment is joined to its neighbour, if the pause between them is short enough
LONGEST_JOINED_PAUSE = 0.6  # seconds
MOST_LETTERS = 220  # of a segment; Kokoro speaks 510 phonemes
SENTENCE_ENDS, CLAUSE_ENDS = ".!?…", ",;:—"
# What punctuation adds to the pause after a word when a long segment is divided, in seconds.
SENTENCE_BONUS, CLAUSE_BONUS = 0.6, 0.25


@dataclass(frozen=True)
class Segment:
    """Words that are spoken together, in one style."""

    words: tuple[Word, ...]

    @property
    def start(self) -> float:
        """Seconds at which the first word begins."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """Seconds at which the last word ends."""
        return self.words[-1].end

    @property
    def text(self) -> str:
        """The words, with spaces between them."""
        return " ".join(word.text for word in self.words)


def make_segments(words: Sequence[Word], window: float) -> list[Segment]:
    """Divide words at pauses into segments of at most about ``window`` seconds.

    A pause of ``PAUSE`` separates two segments, unless one of them is short. Longer segments are divided at their
    longest pause, preferably after punctuation and near the middle.
    """
    parts: list[list[Word]] = []
    for word in words:
        if parts and word.start - parts[-1][-1].end < PAUSE:
            parts[-1].append(word)
        else:
            parts.append([word])
    whole = [part for joined in _join_short(parts, window) for part in _divide(joined, window)]
    return [Segment(tuple(part)) for part in whole]


def _seconds(part: Sequence[Word]) -> float:
    return part[-1].end - part[0].start


def _letters(part: Sequence[Word]) -> int:
    # A digit is spoken as a word.
    return sum(len(word.text) + 8 * sum(map(str.isdigit, word.text)) + 1 for word in part)


def _join_short(parts: list[list[Word]], window: float) -> list[list[Word]]:
    joined: list[list[Word]] = []
    for part in parts:
        if joined:
            pause = part[0].start - joined[-1][-1].end
            short = min(_seconds(part), _seconds(joined[-1])) < SHORT
            if short and pause < LONGEST_JOINED_PAUSE and part[-1].end - joined[-1][0].start <= window:
                joined[-1] = joined[-1] + part
                continue
        joined.append(part)
    return joined


def _divide(part: list[Word], window: float) -> list[list[Word]]:
    if len(part) < 2 or (_seconds(part) <= window and _letters(part) <= MOST_LETTERS):
        return [part]

    def merit(index: int) -> float:
        """How good it is to divide before a word."""
        before, word = part[index - 1], part[index]
        ending = before.text.rstrip("\"'”’)")[-1:]
        bonus = SENTENCE_BONUS * (ending in SENTENCE_ENDS) + CLAUSE_BONUS * (ending in CLAUSE_ENDS) if ending else 0.0
        middle = (part[0].start + part[-1].end) / 2
        return word.start - before.end + bonus - 0.5 * abs(word.start - middle) / max(_seconds(part), 0.1)

    at = max(range(1, len(part)), key=merit)
    return [*_divide(part[:at], window), *_divide(part[at:], window)]
