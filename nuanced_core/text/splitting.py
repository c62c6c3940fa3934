"""Splitting of free text into sentences that are short enough for Kokoro."""

import re
from collections.abc import Iterator
from itertools import accumulate

from nuanced_core.errors import TextError
from nuanced_core.text.phonemes import excerpt

__all__ = ["split_sentences"]

MAX_COST = 300  # letters; the 240 built-in sentences have at most 1.32 espeak phonemes per letter
SPELLED_OUT_COST = 12  # letters; a digit or symbol is spoken as at least one word (the 7 of 700: "seven hundred")
_PUNCTUATION = frozenset(" .,;:!?'\"-()[]\u2014\u2013\u2026\u2018\u2019\u201c\u201d")
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[^\W_a-z])")
_CLAUSE_END = re.compile(r"[,;:.!?\u2026\u2014\u2013][\"'\u201d\u2019)\]]*\s+|\s(?=[\u2014\u2013-]\s)")
# "9 a.m. Monday" goes on, "9 a.m. The bus was late" does not.
_TIME = re.compile(
    r"\b[ap]\.m\.\s+(?=(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b|(?:Eastern|Central|Mountain|Pacific) [Tt]ime\b"
    r"|(?:[ECMP][SD]?T|GMT|UTC)\b)"
)
_PERIOD = re.compile(r"(?<![.!?\u2026])\.\s+")


def split_sentences(text: str) -> list[str]:
    """Split free text into sentences that are short enough for Kokoro.

    A sentence ends at its punctuation or at a blank line. A long sentence is cut after clause punctuation, or else at a
    space, or else (no space in 300 letters) anywhere. No word is lost; pieces with punctuation only are dropped.
    Lengths are estimated in letters, so a piece that espeak spells out letter by letter can still be too long; the
    phonemizer then raises TextError.

    Raises:
        TextError: ``text`` has no letters or digits.
    """
    pieces = [
        piece
        for paragraph in re.split(r"\n\s*\n", text)
        for sentence in _sentences(" ".join(paragraph.split()))
        for piece in _short_pieces(sentence)
        if any(character.isalnum() for character in piece)
    ]
    if not pieces:
        raise TextError(f"text {excerpt(text)} has nothing to speak: give at least one word")
    return pieces


def _sentences(paragraph: str) -> Iterator[str]:
    periods = _sentence_periods(paragraph)
    start = 0
    for match in _SENTENCE_END.finditer(paragraph):
        if match.end() in periods or not _PERIOD.match(paragraph, match.start()):
            yield paragraph[start : match.end()].strip()
            start = match.end()
    yield paragraph[start:]


def _sentence_periods(text: str) -> set[int]:
    """Return the positions after the periods that end a sentence; others end an abbreviation, such as "Dr."."""
    from sentencex import segment

    # Only its view of periods is used: it also splits before lower-case letters, and not after a bracket.
    return set(accumulate(map(len, segment("en", text)))) - {match.end() for match in _TIME.finditer(text)}


def _short_pieces(sentence: str) -> Iterator[str]:
    rest = sentence
    while (fits := _fitting_length(rest)) < len(rest):
        cut = _cut_position(rest, fits)
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    yield rest


def _fitting_length(text: str) -> int:
    """Return the number of leading characters of ``text`` that cost at most ``MAX_COST`` in total."""
    cost = 0
    for index, character in enumerate(text):
        cost += 1 if character.isalpha() or character in _PUNCTUATION else SPELLED_OUT_COST
        if cost > MAX_COST:
            return index
    return len(text)


def _cut_position(text: str, fits: int) -> int:
    # A cut in the first third would leave a short piece that is spoken without the melody of its sentence.
    periods = _sentence_periods(text)
    clauses = [
        match.end()
        for match in _CLAUSE_END.finditer(text, 0, fits)
        if match.end() > fits // 3 and (match.end() in periods or not _PERIOD.match(text, match.start()))
    ]
    if clauses:
        return clauses[-1]
    space = text.rfind(" ", 0, fits + 1)
    return space if space > 0 else fits
