"""nuanced_core.transfer.alignment: phonemes that are joined, divided and changed still find their words."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from nuanced_core.errors import TextError
from nuanced_core.transfer.alignment import REPLACED, partners, words_of_phonemes

SINGLE = {"of": "ˈʌv", "the": "ðə", "old": "ˈOld", "12%": "twˈɛlv pɚsˈɛnt", "a": "ˈA", "cat.": "kˈæt."}


def _phonemize(word: str) -> str:
    if word not in SINGLE:
        raise TextError("nothing to speak")
    return SINGLE[word]


def _spoken(words: str, phonemes: str) -> list[str]:
    """The phonemes of each word."""
    owners = words_of_phonemes(words.split(), phonemes, _phonemize)
    assert len(owners) == len(phonemes)
    found = [owner for owner in owners if owner >= 0]
    assert found == sorted(found)
    return ["".join(p for p, o in zip(phonemes, owners, strict=True) if o == i) for i in range(len(words.split()))]


@pytest.mark.parametrize(
    ("words", "phonemes", "expected"),
    [
        ("of the old cat.", "ʌv ðə ˈOld kˈæt.", ["ʌv", "ðə", "ˈOld", "kˈæt"]),
        ("of the old cat.", "ʌvðɪ ˈOld kˈæt.", ["ʌv", "ðɪ", "ˈOld", "kˈæt"]),  # joined, and a vowel changed
        ("a 12% cat.", "ɐ twˈɛlv pɚsˈɛnt kˈæt.", ["ɐ", "twˈɛlvpɚsˈɛnt", "kˈæt"]),
        ("old ♪ cat.", "ˈOld kˈæt.", ["ˈOld", "", "kˈæt"]),
    ],
)
def test_each_phoneme_belongs_to_its_word(words: str, phonemes: str, expected: list[str]) -> None:
    assert _spoken(words, phonemes) == expected


def test_without_sounds_nothing_has_a_word() -> None:
    assert words_of_phonemes(["♪"], "ˈA.", _phonemize) == [-1, -1, -1]
    assert words_of_phonemes(["a"], " .", _phonemize) == [-1, -1]


def _partners(wanted: Sequence[str], other: Sequence[str]) -> list[int]:
    """The partners by a whole table of costs, cell by cell."""
    rows, columns = len(wanted), len(other)
    cost = {(row, 0): float(row) for row in range(rows + 1)} | {
        (0, column): float(column) for column in range(columns + 1)
    }

    def paired(row: int, column: int) -> float:
        return cost[row - 1, column - 1] + REPLACED * (wanted[row - 1] != other[column - 1])

    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            cost[row, column] = min(paired(row, column), cost[row - 1, column] + 1, cost[row, column - 1] + 1)
    found = [0] * rows
    row, column = rows, columns
    while row > 0:
        if column > 0 and cost[row, column] == paired(row, column):
            row, column = row - 1, column - 1
            found[row] = column
        elif column > 0 and cost[row, column] == cost[row, column - 1] + 1:
            column -= 1
        else:
            row -= 1
            found[row] = max(column - 1, 0)
    return found


@pytest.mark.parametrize("letters", ["ab", "abcdefgh"])
def test_partners_are_those_of_the_whole_table_of_costs(letters: str) -> None:
    rng = np.random.default_rng(len(letters))
    for _ in range(150):
        wanted, other = ("".join(rng.choice([*letters], rng.integers(least, 16))) for least in (0, 1))
        assert partners(wanted, other) == _partners(wanted, other)


def test_partners_take_little_more_than_a_byte_for_a_pair() -> None:
    rng = np.random.default_rng(0)
    wanted, other = ([str(word) for word in rng.integers(0, 50, count)] for count in (1500, 2500))
    tracemalloc.start()  # NumPy's arrays are counted
    found = partners(wanted, other)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == sorted(found) and most < 1.2 * 1500 * 2500
