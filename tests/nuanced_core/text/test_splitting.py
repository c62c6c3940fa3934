"""nuanced_core.text.splitting: free text is split without losing words, and each piece fits."""

import pytest

from nuanced_core.errors import TextError
from nuanced_core.text.phonemes import MAX_PHONEMES, Phonemizer
from nuanced_core.text.sentences import load_sentences
from nuanced_core.text.splitting import split_sentences
from tests.nuanced_core.text.words import words


def test_text_is_split_at_sentence_ends_only() -> None:
    text = 'Dr. Fox paid 3.50 today. "Really?" she asked. "Yes!" Well... maybe not\ntoday.\n\nNew part\n\n* * *'
    assert split_sentences(text) == [
        "Dr. Fox paid 3.50 today.",
        '"Really?" she asked.',
        '"Yes!"',
        "Well... maybe not today.",
        "New part",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Smith met Mr. T. S. Eliot, Sen. Cruz and Sgt. Pepper.",
        "Pi is 3.14, and it made $1.5 million.",
        "Use a tool, e.g. Python or, i.e. Perl.",
        "The U.S. Army left Washington, D.C. Monday.",
        "We met at 9 a.m. Monday, or at 3 p.m. Eastern time.",
        "See Fig. 3 and No. 5 of Jan. 5.",
        "Acme Inc. Chairman Bob spoke.",
        "Go to example.com or use version 3.10.2 now.",
    ],
)
def test_a_period_within_a_sentence_does_not_end_it(sentence: str) -> None:
    assert split_sentences(f"{sentence} Then we left. {sentence}") == [sentence, "Then we left.", sentence]


def test_an_abbreviation_at_the_end_ends_a_sentence() -> None:
    text = "We met at 9 a.m. The bus was late. He lives in the U.S. She does not. It was vitamin C. He took it."
    assert len(split_sentences(text)) == 6


def test_a_long_sentence_is_not_cut_after_an_abbreviation() -> None:
    text = " ".join(["the small boat of Dr. Smith went slowly up the river"] * 20)
    assert not [piece for piece in split_sentences(text) if piece.endswith("Dr.")]


def test_a_long_sentence_is_cut_at_clauses_then_spaces() -> None:
    clause = "the boat went slowly up the river past the mill"
    by_clause = split_sentences(", ".join([clause] * 20) + ".")
    assert len(by_clause) > 2
    assert all(piece.endswith((",", ".")) for piece in by_clause)
    by_space = split_sentences(" ".join([clause] * 20))
    assert {word for piece in by_space for word in piece.split()} == set(clause.split())


@pytest.mark.parametrize("joint", [" ", ", ", "; ", " — ", "\n", '," she said, "'])
def test_splitting_a_long_text_loses_no_word_and_the_pieces_fit(joint: str, espeak: Phonemizer) -> None:
    text = joint.join(sentence.rstrip(".!?") for sentence in load_sentences("train"))
    pieces = split_sentences(text)
    assert words(" ".join(pieces)) == words(text)
    assert all(len(espeak(piece)) <= MAX_PHONEMES for piece in pieces)


@pytest.mark.parametrize("text", ["7" * 200, "19 84 " * 80, "$ % & " * 60 + "a", "strengths" * 100])
def test_text_that_is_spelled_out_fits(text: str, espeak: Phonemizer) -> None:
    pieces = split_sentences(text)
    assert "".join("".join(pieces).split()).endswith("".join(text.split())[-1])
    assert sum(c.isalnum() for c in "".join(pieces)) == sum(c.isalnum() for c in text)
    assert all(len(espeak(piece)) <= MAX_PHONEMES for piece in pieces)


@pytest.mark.parametrize("text", ["", " \n ", "...!?", "* * *"])
def test_text_without_words_is_an_error(text: str) -> None:
    with pytest.raises(TextError, match="nothing to speak"):
        split_sentences(text)
