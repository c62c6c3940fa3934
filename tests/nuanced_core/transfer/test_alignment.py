"""nuanced_core.transfer.alignment: phonemes that are joined, divided and changed still find their words."""

import pytest

from nuanced_core.errors import TextError
from nuanced_core.transfer.alignment import words_of_phonemes

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
