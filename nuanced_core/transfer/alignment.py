"""Alignment by the edit distance: which word each phoneme of a sentence belongs to.

A phonemizer joins words ("of the"), divides them ("12%") and changes them by their neighbours, so the phonemes of the
sentence are aligned with those of the single words by their edit distance.
"""

from collections.abc import Callable, Sequence

import numpy as np

from nuanced_core.errors import TextError

__all__ = ["partners", "words_of_phonemes"]

REPLACED = 1.5  # cost of a replaced item; of one that is inserted or left out: 1
NO_WORD = -1  # of a space or punctuation
_PAIRED, _LEFT_OUT, _INSERTED = range(3)  # how a cell of the alignment is reached, best first


def words_of_phonemes(words: Sequence[str], phonemes: str, phonemize: Callable[[str], str]) -> list[int]:
    """Return the index of the word of each phoneme, not falling; -1 for spaces, and for punctuation outside of words.

    Args:
        words: of the sentence, in order.
        phonemes: of the sentence.
        phonemize: converts a word to phonemes; a word for which it raises TextError has none.
    """
    single, owners = "", []
    for index, word in enumerate(words):
        try:
            sounds = "".join(filter(_is_sound, phonemize(word)))
        except TextError:
            sounds = ""
        single += sounds
        owners += [index] * len(sounds)
    places = [place for place, phoneme in enumerate(phonemes) if _is_sound(phoneme)]
    found = [NO_WORD] * len(phonemes)
    if not single or not places:
        return found
    for place, partner in zip(places, partners([phonemes[p] for p in places], single), strict=True):
        found[place] = owners[partner]
    return found


def _is_sound(phoneme: str) -> bool:
    return phoneme.isalpha() or phoneme in "ˈˌː"


def partners(wanted: Sequence[str], other: Sequence[str]) -> list[int]:
    """Return, for each item of ``wanted``, the index of its partner in ``other``, by the least edit distance.

    Partners do not fall. An item that was inserted has the partner of the one before. It takes a byte for each pair
    of an item of ``wanted`` and one of ``other``.

    Args:
        wanted: any number of items.
        other: at least one.
    """
    rows, columns = len(wanted), len(other)
    numbers = {item: number for number, item in enumerate(dict.fromkeys(other))}
    others = np.array([numbers[item] for item in other])
    steps = np.arange(columns + 1, dtype=np.float32)
    moves = np.empty((rows + 1, columns + 1), dtype=np.int8)  # all that is kept of earlier rows of costs
    moves[:, 0] = _INSERTED
    cost = steps
    for row, item in enumerate(wanted, start=1):
        best = cost + 1
        paired = cost[:-1] + np.float32(REPLACED) * (others != numbers.get(item, -1))
        np.minimum(best[1:], paired, out=best[1:])
        cost = np.minimum.accumulate(best - steps) + steps  # with the items of ``other`` that are left out
        inserted = (cost[1:] != cost[:-1] + 1).view(np.int8)
        np.multiply(cost[1:] != paired, _LEFT_OUT + inserted, out=moves[row, 1:])  # 0 is _PAIRED
    found = [0] * rows
    row, column = rows, columns
    while row > 0:
        move = int(moves[row, column])
        row, column = row - (move != _LEFT_OUT), column - (move != _INSERTED)
        if move != _LEFT_OUT:
            found[row] = column if move == _PAIRED else max(column - 1, 0)
    return found
