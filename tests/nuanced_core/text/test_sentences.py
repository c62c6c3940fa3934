"""nuanced_core.text.sentences: the built-in splits, and sentences from files and lists."""

import re
from itertools import combinations
from pathlib import Path

import pytest

from nuanced_core.errors import TextError
from nuanced_core.text import sentences
from nuanced_core.text.phonemes import MAX_PHONEMES, Phonemizer
from nuanced_core.text.sentences import SENTENCE_SPLITS, load_sentences, spoken_words
from nuanced_core.text.splitting import split_sentences
from tests.nuanced_core.text.words import words

COUNTS = {"train": 160, "validation": 40, "test": 40}
STRESS_AND_LENGTH = "ˈˌː"


@pytest.mark.parametrize("split", SENTENCE_SPLITS)
def test_a_split_has_its_count_and_a_range_of_lengths(split: str) -> None:
    sentences = load_sentences(split)
    lengths = [len(words(sentence)) for sentence in sentences]
    assert len(sentences) == COUNTS[split]
    assert min(lengths) == 3
    assert 36 <= max(lengths) <= 40
    short = sum(length <= 7 for length in lengths) / len(lengths)
    middle = sum(8 <= length <= 15 for length in lengths) / len(lengths)
    assert 0.28 <= short <= 0.4
    assert 0.28 <= middle <= 0.4
    assert len({length for length in lengths if length > 15}) >= 8


@pytest.mark.parametrize("split", SENTENCE_SPLITS)
def test_a_split_has_questions_exclamations_and_varied_punctuation(split: str) -> None:
    text = "\n".join(load_sentences(split))
    for mark in "?!,;\u2014\"'":
        assert text.count(mark) >= 2, mark
    assert "..." in text
    assert not re.search(r"\d", text)
    assert set(text) - {"\u2014"} <= {chr(code) for code in range(128)}


def test_no_two_sentences_differ_only_in_case_or_punctuation() -> None:
    everything = [tuple(words(s)) for split in SENTENCE_SPLITS for s in load_sentences(split)]
    assert len(set(everything)) == sum(COUNTS.values())


def test_splits_have_no_near_duplicates_in_common() -> None:
    word_sets = {split: [set(words(s)) for s in load_sentences(split)] for split in SENTENCE_SPLITS}
    closest = max(
        len(a & b) / len(a | b) for p, q in combinations(SENTENCE_SPLITS, 2) for a in word_sets[p] for b in word_sets[q]
    )
    assert closest < 0.4


@pytest.mark.parametrize("split", SENTENCE_SPLITS)
def test_every_sentence_fits_and_all_phonemes_occur(split: str, espeak: Phonemizer) -> None:
    phonemes = [espeak(sentence) for sentence in load_sentences(split)]
    assert max(map(len, phonemes)) <= MAX_PHONEMES
    symbols = "".join(phonemes)
    kinds = {symbol for symbol in symbols if symbol.isalpha() and symbol not in STRESS_AND_LENGTH}
    assert len(kinds) >= 38
    for phoneme in "AIOWYæɑɔəɚɛɜiɪuʊʌbdfhjklmnpstvwzðŋɡɹʃʒʤʧθ":
        assert symbols.count(phoneme) >= 4, phoneme


def test_built_in_sentences_are_short_enough() -> None:
    for split in SENTENCE_SPLITS:
        for sentence in load_sentences(split):
            assert max(map(len, split_sentences(sentence))) <= 300
            assert words(" ".join(split_sentences(sentence))) == words(sentence)


def test_a_file_skips_blank_lines_comments_and_repetitions(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# mine\n\n  One here. \r\nTwo – café.\n#no\nOne here.\n".encode())
    assert load_sentences(path) == ("One here.", "Two – café.")
    assert load_sentences(str(path)) == load_sentences(path)


def test_a_list_keeps_its_order_without_repetitions() -> None:
    assert load_sentences(["B.", "A.", " B. ", "", "# not a comment here"]) == (
        "B.",
        "A.",
        "# not a comment here",
    )


def test_the_error_for_a_missing_file_names_it_and_the_splits(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"'trian'.*train, validation, test"):
        load_sentences("trian")
    with pytest.raises(TextError, match=re.escape(str(tmp_path))):
        load_sentences(tmp_path)


def test_a_file_that_is_not_utf8_or_is_empty_is_an_error(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Café.".encode("latin-1"))
    with pytest.raises(TextError, match=r"latin\.txt.*not UTF-8 \(byte 3\)"):
        load_sentences(latin)
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n\n", encoding="utf-8")
    with pytest.raises(TextError, match=r"empty\.txt.*no sentence"):
        load_sentences(empty)


def test_a_list_that_is_empty_or_has_other_items_than_strings_is_an_error() -> None:
    for nothing in ([], ["", "  "]):
        with pytest.raises(TextError, match="no sentence"):
            load_sentences(nothing)
    with pytest.raises(TextError, match="item 1 of the list is 7"):
        load_sentences(["Fine.", 7])  # type: ignore[list-item]


def test_spoken_words_ignore_case_punctuation_and_spaces() -> None:
    assert spoken_words("  It's  a DOOR\n-- red? ") == spoken_words("it s a door red") == "it s a door red"
    assert spoken_words("A red door.") != spoken_words("A red doors.")


def test_sentences_of_the_test_split_are_found_by_their_words() -> None:
    test, train = load_sentences("test"), load_sentences("train")
    changed = test[3].upper().replace(",", " ") + "!!"
    assert sentences.test_sentences_in([train[0], changed, test[0], train[1]]) == [changed, test[0]]
