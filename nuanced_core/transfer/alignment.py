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

    Partners do not fall. An item that was inserted has the partner of the one before.

    Args:
        wanted: any number of items.
        other: at least one.
    """
    rows, columns = len(wanted), len(other)
    steps, others = np.arange(columns + 1), np.array(list(other))
    cost = np.zeros((rows + 1, columns + 1), dtype=np.float32)
    cost[0] = steps
    for row, item in enumerate(wanted, start=1):
        best = cost[row - 1] + 1
        best[1:] = np.minimum(best[1:], cost[row - 1, :-1] + REPLACED * (others != item))
        cost[row] = np.minimum.accumulate(best - steps) + steps  # the items of ``other`` that are left out
    found = [0] * rows
    row, column = rows, columns
    while row > 0:
        here = cost[row, column]
        if column > 0 and here == cost[row - 1, column - 1] + REPLACED * (others[column - 1] != wanted[row - 1]):
            row, column = row - 1, column - 1
            found[row] = column
        elif column > 0 and here == cost[row, column - 1] + 1:
            column -= 1
        else:
            row -= 1
            found[row] = max(column - 1, 0)
    return found
