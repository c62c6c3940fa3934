"""nuanced_core.text.characters: variants of characters are unified, foreign ones are found."""

import pytest

from nuanced_core.text.characters import foreign_characters, script_name, unify_characters, without_foreign_characters
from nuanced_core.text.sentences import SENTENCE_SPLITS, load_sentences


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ＡＢＣ １２３！", "ABC 123!"),
        ("\U0001d400\U0001d401 ﬁne ① Ⅳ ℃", "AB fine 1 IV °C"),
        ("so\u00adft ze\u200bro \u202eright\u202c \ufefffirst\u2060", "soft zero right first"),
        ("no\u00a0break\u3000wide\tnext\x07bell", "no break wide nextbell"),
        ("cafe\u0301 nai\u0308ve", "café naïve"),
        ("a non\u2011breaking hyphen, \u22125", "a non-breaking hyphen, -5"),
        ("1\u202f000\u202f000 and 10\u00a0km", "1,000,000 and 10 km"),
        ("a \u2013 b, 3\u20135, Paris\u2013London", "a \u2014 b, 3\u20135, Paris\u2013London"),
        ("٣٤", "34"),
        ("it\u00b4s and it\u02bcs, \u2116 5", "it's and it's, No. 5"),
    ],
)
def test_variants_become_the_plain_character(text: str, plain: str) -> None:
    assert unify_characters(text) == plain


@pytest.mark.parametrize("text", ["“q” ‘r’ it’s — well… 2½ m² 5 µm ™ ©", "Zoë, naïve café, Straße, łódź", "a->b {x}"])
def test_other_characters_are_unchanged(text: str) -> None:
    assert unify_characters(text) == text
    assert foreign_characters(text) == []


def test_built_in_sentences_are_unchanged() -> None:
    for split in SENTENCE_SPLITS:
        for sentence in load_sentences(split):
            assert unify_characters(sentence) == sentence


@pytest.mark.parametrize(
    ("foreign", "script"),
    [
        ("東京", "Han"),
        ("ひら", "Kana"),
        ("안녕", "Hangul"),
        ("Привет", "Cyrillic"),
        ("مرحبا", "Arabic"),
        ("नमस्ते", "Devanagari"),
        ("λόγος", "Greek"),
        ("שלום", "Hebrew"),
        ("สวัสดี", "Thai"),
        ("👍🏽", "symbol"),
        ("🇺🇸", "symbol"),
        ("\ue000", "symbol"),
        ("\U00017000", "Unknown"),  # Tangut, of whose letters Python knows no names
    ],
)
def test_foreign_characters_are_found_named_and_removed(foreign: str, script: str) -> None:
    text = f"We like {foreign}, too."
    assert foreign_characters(text) == [foreign]
    assert script_name(foreign[0]) == script
    assert without_foreign_characters(text, [foreign]) == "We like, too."


def test_each_letter_has_a_script() -> None:
    assert all(script_name(letter) for letter in map(chr, range(0x110000)) if letter.isalpha())


def test_a_single_greek_letter_is_spoken_by_its_name() -> None:
    assert foreign_characters("π is about 3, as are α and Ω") == []
