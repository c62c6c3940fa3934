"""nuanced_core.text.phonemes: phonemizers, which never use the network."""

import hashlib
import importlib.util
import re
import socket
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import ConfigError, TextError, WeightsError
from nuanced_core.text.phonemes import MAX_PHONEMES, SYMBOLS, Phonemizer, excerpt, make_phonemizer
from nuanced_core.text.sentences import SENTENCE_SPLITS, load_sentences


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make network access and subprocesses fail, and list the attempts (spaCy swallows some errors)."""
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


def test_espeak_phonemes_of_a_known_sentence(espeak: Phonemizer) -> None:
    assert espeak.name == "espeak"
    assert espeak("The  measure\nof joy.") == "ðə mˈɛʒɚɹ ʌv ʤˈY."


def test_a_sentence_is_converted_once() -> None:
    converted: list[str] = []

    def convert(text: str) -> str:
        converted.append(text)
        return text + "\u2753"

    phonemizer = Phonemizer("counted", convert)
    assert phonemizer("a b") == phonemizer(" a\nb ") == "a b\u2753"
    assert converted == ["a b"]


@pytest.mark.parametrize("text", ["", "   ", "...", "?! — ;"])
def test_the_error_for_text_without_words_names_the_text(text: str, espeak: Phonemizer) -> None:
    with pytest.raises(TextError, match=re.escape(repr(text.strip())) + ".*nothing to speak"):
        espeak(text)


def test_the_error_for_too_many_phonemes_names_the_sentence() -> None:
    phonemizer = Phonemizer("same", lambda text: text)
    assert len(phonemizer("a" * MAX_PHONEMES)) == MAX_PHONEMES
    with pytest.raises(TextError, match=r"'Too long aaa.*511 phonemes.*at most 510"):
        phonemizer("Too long " + "a" * (MAX_PHONEMES + 1 - 9))


def test_the_error_for_an_unknown_kind_names_the_choices() -> None:
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


def test_the_fixture_detects_the_download_of_misaki_itself(
    monkeypatch: pytest.MonkeyPatch, no_downloads: list[str]
) -> None:
    set_spacy_model(monkeypatch, importable=False, packaged=False)
    from misaki.en import G2P

    with pytest.raises(AssertionError, match="spacy"):
        G2P()
    assert len(no_downloads) == 1


@pytest.mark.parametrize("kind", ["auto", "misaki"])
def test_misaki_is_selected_if_its_spacy_model_is_installed(
    monkeypatch: pytest.MonkeyPatch, no_downloads: list[str], kind: str
) -> None:
    set_spacy_model(monkeypatch, importable=True, packaged=True)
    created: list[dict[str, object]] = []

    class FakeG2P:
        def __init__(self, **options: object) -> None:
            created.append(options)

        def __call__(self, text: str) -> tuple[str, None]:
            return text.lower(), None

    fake = types.ModuleType("misaki.en")
    fake.G2P = FakeG2P  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "misaki.en", fake)
    phonemizer = make_phonemizer(kind)  # type: ignore[arg-type]
    assert phonemizer.name == "misaki"
    assert phonemizer("Hello") == "hello"
    assert created[0]["british"] is False
    assert created[0]["fallback"] is not None
    assert no_downloads == []


def test_importing_the_module_imports_no_heavy_packages() -> None:
    code = (
        "import sys, nuanced_core.text.phonemes; print({'misaki', 'spacy', 'torch', 'phonemizer'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_the_phonemes_of_the_built_in_sentences_are_those_that_cached_clips_were_rendered_from(
    espeak: Phonemizer,
) -> None:
    phonemes = "".join(espeak(sentence) + "\n" for split in SENTENCE_SPLITS for sentence in load_sentences(split))
    digest = hashlib.sha256(phonemes.encode()).hexdigest()
    assert digest == "d0eaba2b4ecb07cab53914ab3c50450fbfeb8c863c5a57e2ce7ef7cb2a3c8522"


def test_foreign_characters_are_left_out_with_one_warning_per_sentence(caplog: pytest.LogCaptureFixture) -> None:
    phonemizer = make_phonemizer("espeak")
    assert (
        phonemizer("We went to 東京 🎉 today.")
        == phonemizer("We went to 東京 🎉 today.")
        == phonemizer("We went to today.")
    )
    message = "sentence 'We went to 東京 🎉 today.': English cannot speak '東京' (Han), '🎉' (symbol): left out"
    assert [r.getMessage() for r in caplog.records if r.name == "nuanced_core.text.phonemes"] == [message]


@pytest.mark.parametrize("text", ["Привет, мир!", "東京", "3人", "안녕 🎉"])
def test_the_error_for_text_without_latin_words_names_the_characters(text: str, espeak: Phonemizer) -> None:
    word = re.findall(r"[^\W\d]+", text)[0]
    with pytest.raises(TextError, match=rf"{text!r} has nothing to speak in English.*'{word}' \(.*Latin letters"):
        espeak(text)


def test_accents_quotes_and_invisible_characters_are_no_reason_to_warn(
    espeak: Phonemizer, caplog: pytest.LogCaptureFixture
) -> None:
    plain = espeak("Zoe said \"it's 5 o'clock\" to him, the soft one.")
    odd = 'Zoe said "it’s\u00a0５ o’clock" to\u200b him, the so\u00adft\u202e one.'
    assert espeak(odd) == plain
    assert espeak("A naïve café.") == espeak("A naïve cafe\u0301.")
    assert not [r for r in caplog.records if r.name == "nuanced_core.text.phonemes"]


def test_sounds_that_kokoro_drops_are_told_but_not_brackets(caplog: pytest.LogCaptureFixture) -> None:
    phonemizer = Phonemizer("same", lambda text: text, SYMBOLS)
    assert phonemizer("a [b] ¡n\u0329!") == "a [b] ¡n\u0329!"
    assert not caplog.records
    assert phonemizer("ʘa ɬa") == "ʘa ɬa"
    assert "sentence 'ʘa ɬa': Kokoro has no sound for 'ɬ', 'ʘ': left out" in caplog.text


@pytest.mark.real
def test_symbols_are_those_of_kokoros_vocabulary(models: ModelSet) -> None:
    assert frozenset(models.kokoro.vocabulary) == SYMBOLS


def test_an_excerpt_is_quoted_and_at_most_60_characters_of_text() -> None:
    assert excerpt("a" * 60) == repr("a" * 60)
    assert excerpt("a" * 61) == repr("a" * 57 + "...")
