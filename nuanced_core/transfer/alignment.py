"""Which word each phoneme of a sentence belongs to.

A phonemizer joins words ("of the"), divides them ("12%") and changes them by their neighbours, so the phonemes of the
sentence are aligned with those of the single words by their edit distance.
"""

from collections.abc import Callable, Sequence

import numpy as np

from nuanced_core.errors import TextError

__all__ = ["words_of_phonemes"]

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
    for place, partner in zip(places, _partners([phonemes[p] for p in places], single), strict=True):
        found[place] = owners[partner]
    return found


def _is_sound(phoneme: str) -> bool:
    return phoneme.isalpha() or phoneme in "ˈˌː"


def _partners(sentence: Sequence[str], single: str) -> list[int]:
    """Return, for each phoneme of a sentence, the index of its partner in ``single``, by the least edit distance.

    An inserted phoneme has the partner of the one before.
    """
    rows, columns = len(sentence), len(single)
    cost = np.zeros((rows + 1, columns + 1))
    cost[:, 0], cost[0] = np.arange(rows + 1), np.arange(columns + 1)
    other = np.array(list(single))
    for row in range(1, rows + 1):
        replaced = cost[row - 1, :-1] + 1.5 * (other != sentence[row - 1])
        best = np.minimum(replaced, cost[row - 1, 1:] + 1)
        for column in range(1, columns + 1):
            cost[row, column] = min(best[column - 1], cost[row, column - 1] + 1)
    partners = [0] * rows
    row, column = rows, columns
    while row > 0:
        if column > 0 and cost[row, column] == cost[row - 1, column - 1] + 1.5 * (
            single[column - 1] != sentence[row - 1]
        ):
            row, column = row - 1, column - 1
            partners[row] = column
        elif column > 0 and cost[row, column] == cost[row, column - 1] + 1:
            column -= 1
        else:
            row -= 1
            partners[row] = max(column - 1, 0)
    return partners
