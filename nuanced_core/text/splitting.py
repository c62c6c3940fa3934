"""TODO."""

import re
from collections.abc import Iterator

from nuanced_core.errors import TextError
from nuanced_core.text.phonemes import excerpt

__all__ = ["split_sentences"]
MAX_COST = 300  # letters; measured: at most 1.32 espeak phonemes a letter in our 240 sentences
SPELLED_OUT_COST = 12  # letters; a digit or a symbol is read as a word or more ("7": "seven hundred")
_PLAIN = frozenset(" .,;:!?'\"-()[]\u2014\u2013\u2026\u2018\u2019\u201c\u201d")
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[^\W_a-z])")
_CLAUSE_END = re.compile(r"[,;:.!?\u2026\u2014\u2013][\"'\u201d\u2019)\]]*\s+|\s(?=[\u2014\u2013-]\s)")
_ABBREVIATION = re.compile(r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|No|Mt|Gen|Capt|Lt|e\.g|i\.e|[A-Z])\.\s+$")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of free text, each short enough for Kokoro.

    A sentence ends at its punctuation or at a blank line. A long one is cut after clause punctuation, else at
    a space, else (no space for 300 letters) anywhere; no word is lost, pieces of punctuation alone are left
    out. Lengths are estimated in letters: what espeak spells out letter by letter can still be too long,
    which the phonemizer then says. Raises TextError if `text` holds no letter or digit.
    """
    pieces = [
        piece
        for paragraph in re.split(r"\n\s*\n", text)
        for sentence in _sentences(" ".join(paragraph.split()))
        for piece in _short_pieces(sentence)
        if any(character.isalnum() for character in piece)
    ]
    if not pieces:
        raise TextError(f"text {excerpt(text)} holds nothing to say: give at least one word")
    return pieces


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : match.end()]
        if not _ABBREVIATION.search(sentence):
            yield sentence.strip()
            start = match.end()
    yield paragraph[start:]


def _short_pieces(sentence: str) -> Iterator[str]:
    rest = sentence
    while (fits := _fitting_length(rest)) < len(rest):
        cut = _cut_position(rest, fits)
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    yield rest


def _fitting_length(text: str) -> int:
    """How many leading characters of `text` cost no more than `MAX_COST`."""
    cost = 0
    for index, character in enumerate(text):
        cost += 1 if character.isalpha() or character in _PLAIN else SPELLED_OUT_COST
        if cost > MAX_COST:
            return index
    return len(text)


def _cut_position(text: str, fits: int) -> int:
    # a cut in the first third would leave a scrap that is spoken without its sentence's melody
    clauses = [end.end() for end in _CLAUSE_END.finditer(text, 0, fits) if end.end() > fits // 3]
    if clauses:
        return clauses[-1]
    space = text.rfind(" ", 0, fits + 1)
    return space if space > 0 else fits
