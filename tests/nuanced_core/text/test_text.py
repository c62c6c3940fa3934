"""The built-in sentences, splitting of free text, and phonemizers that never reach for the network."""

import importlib.util
import re
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError, TextError, WeightsError
from nuanced_core.text.phonemes import MAX_PHONEMES, Phonemizer, make_phonemizer
from nuanced_core.text.sentences import SENTENCE_SPLITS, load_sentences
from nuanced_core.text.splitting import split_sentences

COUNTS = {"train": 160, "validation": 40, "test": 40}
STRESS_AND_LENGTH = "ˈˌː"


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['-]\w+)*", text.lower())


@pytest.fixture(scope="module")
def espeak() -> Phonemizer:
    return make_phonemizer("espeak")


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every way to the network or to pip fail, and list the attempts (spaCy swallows some errors)."""
    attempts: list[str] = []

    def refuse(what: str) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            attempts.append(f"{what} {args}")
            raise AssertionError(f"{what} was attempted: {args}")

        return call

    import spacy.cli

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse(f"socket.{name}"))
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse(f"socket.{name}"))
    for name in ("run", "call", "check_call", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, refuse(f"subprocess.{name}"))
    monkeypatch.setattr("os.system", refuse("os.system"))
    monkeypatch.setattr(spacy.cli, "download", refuse("spacy.cli.download"))
    return attempts


def set_spacy_model(monkeypatch: pytest.MonkeyPatch, importable: bool, packaged: bool) -> None:
    import spacy.util

    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        if name == "en_core_web_sm":
            return object() if importable else None
        return real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(spacy.util, "is_package", lambda name: packaged and name == "en_core_web_sm")


# --- the built-in sentences


@pytest.mark.parametrize("split", SENTENCE_SPLITS)
def test_split_has_its_count_and_a_spread_of_lengths(split: str) -> None:
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
def test_split_varies_mood_and_punctuation(split: str) -> None:
    text = "\n".join(load_sentences(split))
    for mark in "?!,;\u2014\"'":
        assert text.count(mark) >= 2, mark
    assert "..." in text
    assert not re.search(r"\d", text)
    assert set(text) - {"\u2014"} <= {chr(code) for code in range(128)}


def test_no_sentence_is_repeated_in_any_case_or_punctuation() -> None:
    everything = [tuple(words(s)) for split in SENTENCE_SPLITS for s in load_sentences(split)]
    assert len(set(everything)) == sum(COUNTS.values())


def test_splits_share_no_near_duplicate() -> None:
    bags = {split: [set(words(s)) for s in load_sentences(split)] for split in SENTENCE_SPLITS}
    closest = max(
        len(a & b) / len(a | b) for p, q in combinations(SENTENCE_SPLITS, 2) for a in bags[p] for b in bags[q]
    )
    assert closest < 0.4


@pytest.mark.parametrize("split", SENTENCE_SPLITS)
def test_every_sentence_can_be_said_and_all_phonemes_occur(split: str, espeak: Phonemizer) -> None:
    phonemes = [espeak(sentence) for sentence in load_sentences(split)]
    assert max(map(len, phonemes)) <= MAX_PHONEMES
    symbols = "".join(phonemes)
    kinds = {symbol for symbol in symbols if symbol.isalpha() and symbol not in STRESS_AND_LENGTH}
    assert len(kinds) >= 38
    for phoneme in "AIOWYæɑɔəɚɛɜiɪuʊʌbdfhjklmnpstvwzðŋɡɹʃʒʤʧθ":
        assert symbols.count(phoneme) >= 4, phoneme


def test_built_in_sentences_need_no_cutting() -> None:
    for split in SENTENCE_SPLITS:
        for sentence in load_sentences(split):
            assert max(map(len, split_sentences(sentence))) <= 300
            assert words(" ".join(split_sentences(sentence))) == words(sentence)


# --- load_sentences


def test_file_skips_blanks_comments_and_repeats(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# mine\n\n  One here. \r\nTwo – café.\n#no\nOne here.\n".encode())
    assert load_sentences(path) == ("One here.", "Two – café.")
    assert load_sentences(str(path)) == load_sentences(path)


def test_list_keeps_order_and_drops_repeats() -> None:
    assert load_sentences(["B.", "A.", " B. ", "", "# not a comment here"]) == (
        "B.",
        "A.",
        "# not a comment here",
    )


def test_missing_file_names_it_and_the_splits(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"'trian'.*train, validation, test"):
        load_sentences("trian")
    with pytest.raises(TextError, match=re.escape(str(tmp_path))):
        load_sentences(tmp_path)


def test_file_that_is_not_utf8_or_empty(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Café.".encode("latin-1"))
    with pytest.raises(TextError, match=r"latin\.txt.*not UTF-8 \(byte 3\)"):
        load_sentences(latin)
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n\n", encoding="utf-8")
    with pytest.raises(TextError, match=r"empty\.txt.*no sentence"):
        load_sentences(empty)


def test_list_that_is_empty_or_holds_no_strings() -> None:
    for nothing in ([], ["", "  "]):
        with pytest.raises(TextError, match="no sentence"):
            load_sentences(nothing)
    with pytest.raises(TextError, match="item 1 of the list is 7"):
        load_sentences(["Fine.", 7])  # type: ignore[list-item]


# --- split_sentences


def test_splits_at_sentence_ends_only() -> None:
    text = 'Dr. Fox paid 3.50 today. "Really?" she asked. "Yes!" Well... maybe not\ntoday.\n\nNew part\n\n* * *'
    assert split_sentences(text) == [
        "Dr. Fox paid 3.50 today.",
        '"Really?" she asked.',
        '"Yes!"',
        "Well... maybe not today.",
        "New part",
    ]


def test_long_sentence_is_cut_at_clauses_then_spaces() -> None:
    clause = "the boat went slowly up the river past the mill"
    by_clause = split_sentences(", ".join([clause] * 20) + ".")
    assert len(by_clause) > 2
    assert all(piece.endswith((",", ".")) for piece in by_clause)
    by_space = split_sentences(" ".join([clause] * 20))
    assert {word for piece in by_space for word in piece.split()} == set(clause.split())


@pytest.mark.parametrize("joint", [" ", ", ", "; ", " — ", "\n", '," she said, "'])
def test_splitting_a_long_text_loses_no_word_and_fits(joint: str, espeak: Phonemizer) -> None:
    text = joint.join(sentence.rstrip(".!?") for sentence in load_sentences("train"))
    pieces = split_sentences(text)
    assert words(" ".join(pieces)) == words(text)
    assert all(len(espeak(piece)) <= MAX_PHONEMES for piece in pieces)


@pytest.mark.parametrize("text", ["7" * 200, "19 84 " * 80, "$ % & " * 60 + "a", "strengths" * 100])
def test_what_is_spelled_out_still_fits(text: str, espeak: Phonemizer) -> None:
    pieces = split_sentences(text)
    assert "".join("".join(pieces).split()).endswith("".join(text.split())[-1])
    assert sum(c.isalnum() for c in "".join(pieces)) == sum(c.isalnum() for c in text)
    assert all(len(espeak(piece)) <= MAX_PHONEMES for piece in pieces)


@pytest.mark.parametrize("text", ["", " \n ", "...!?", "* * *"])
def test_splitting_nothing_is_an_error(text: str) -> None:
    with pytest.raises(TextError, match="nothing to say"):
        split_sentences(text)


# --- phonemizers


def test_espeak_phonemes_of_a_known_sentence(espeak: Phonemizer) -> None:
    assert espeak.name == "espeak"
    assert espeak("The  measure\nof joy.") == "ðə mˈɛʒɚɹ ʌv ʤˈY."


def test_a_sentence_is_converted_once() -> None:
    asked: list[str] = []

    def convert(text: str) -> str:
        asked.append(text)
        return text + "\u2753"

    phonemizer = Phonemizer("counted", convert)
    assert phonemizer("a b") == phonemizer(" a\nb ") == "a b\u2753"
    assert asked == ["a b"]


@pytest.mark.parametrize("text", ["", "   ", "...", "?! — ;"])
def test_nothing_to_say_is_an_error_that_names_the_text(text: str, espeak: Phonemizer) -> None:
    with pytest.raises(TextError, match=re.escape(repr(text.strip())) + ".*nothing to say"):
        espeak(text)


def test_too_many_phonemes_is_an_error_that_names_the_sentence() -> None:
    phonemizer = Phonemizer("same", lambda text: text)
    assert len(phonemizer("a" * MAX_PHONEMES)) == MAX_PHONEMES
    with pytest.raises(TextError, match=r"'Too long aaa.*511 phonemes.*at most 510"):
        phonemizer("Too long " + "a" * (MAX_PHONEMES + 1 - 9))


def test_unknown_kind_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'festival'.*auto, misaki or espeak"):
        make_phonemizer("festival")  # type: ignore[arg-type]


@pytest.mark.parametrize(("importable", "packaged"), [(False, False), (False, True), (True, False)])
def test_without_the_spacy_model_nothing_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, no_downloads: list[str], importable: bool, packaged: bool
) -> None:
    set_spacy_model(monkeypatch, importable, packaged)
    phonemizer = make_phonemizer("auto")
    assert phonemizer.name == "espeak"
    assert phonemizer("Hello.") == "həlˈO."
    with pytest.raises(WeightsError, match=r"en_core_web_sm.*choose espeak"):
        make_phonemizer("misaki")
    assert no_downloads == []


def test_the_download_guard_sees_misakis_own_download(monkeypatch: pytest.MonkeyPatch, no_downloads: list[str]) -> None:
    set_spacy_model(monkeypatch, importable=False, packaged=False)
    from misaki.en import G2P

    with pytest.raises(AssertionError, match="spacy"):
        G2P()
    assert len(no_downloads) == 1


@pytest.mark.parametrize("kind", ["auto", "misaki"])
def test_with_the_spacy_model_misaki_is_chosen(
    monkeypatch: pytest.MonkeyPatch, no_downloads: list[str], kind: str
) -> None:
    set_spacy_model(monkeypatch, importable=True, packaged=True)
    made: list[dict[str, object]] = []

    class StandInG2P:
        def __init__(self, **options: object) -> None:
            made.append(options)

        def __call__(self, text: str) -> tuple[str, None]:
            return text.lower(), None

    stand_in = types.ModuleType("misaki.en")
    stand_in.G2P = StandInG2P  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "misaki.en", stand_in)
    phonemizer = make_phonemizer(kind)  # type: ignore[arg-type]
    assert phonemizer.name == "misaki"
    assert phonemizer("Hello") == "hello"
    assert made[0]["british"] is False
    assert made[0]["fallback"] is not None
    assert no_downloads == []


def test_importing_the_module_stays_light() -> None:
    code = (
        "import sys, nuanced_core.text.phonemes; print({'misaki', 'spacy', 'torch', 'phonemizer'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
