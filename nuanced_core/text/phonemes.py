"""Phonemizers, which convert American English to the phonemes that Kokoro speaks.

    phonemizer = make_phonemizer()
    phonemes = [phonemizer(sentence) for sentence in split_sentences("Hello there. How are you?")]

Each character of the result is one phoneme; Kokoro speaks at most ``MAX_PHONEMES`` of them at once.
"""

import importlib.util
import logging
import unicodedata
from collections.abc import Callable
from typing import Literal

from nuanced_core.errors import ConfigError, TextError, WeightsError
from nuanced_core.text.characters import (
    foreign_characters,
    has_latin_letters,
    script_name,
    unify_characters,
    without_foreign_characters,
)
from nuanced_core.text.espeak import espeak_library
from nuanced_core.text.normalization import expand, hyphenate_initialisms

__all__ = ["MAX_PHONEMES", "SYMBOLS", "Phonemizer", "PhonemizerKind", "excerpt", "make_phonemizer"]

logger = logging.getLogger(__name__)

MAX_PHONEMES = 510  # phonemes, punctuation and spaces included; Kokoro's context is 512 with start and end token

NAMED_RUNS = 5  # of foreign characters, that a message names

# Those that Kokoro's config.json lists: punctuation, phonemes, and the arrows of intonation.
SYMBOLS = frozenset(
    ' !"(),.:;?\u2014\u201c\u201d\u2026AIOQSTWYabcdefhijklmnopqrstuvwxyz'
    "æçðøŋœɐɑɒɔɕɖəɚɛɜɟɡɣɤɥɨɪɯɰɲɳɴɸɹɻɽɾʁʂʃʈʊʋʌʎʒʔʝʣʤʥʦʧʨʰʲˈˌː\u0303βθχᵊᵝᵻ→↓↗↘ꭧ"
)

PhonemizerKind = Literal["auto", "misaki", "espeak"]

_SPACY_MODEL = "en_core_web_sm"


class Phonemizer:
    """Converts sentences to Kokoro's phonemes, each sentence once.

    Args:
        name: "misaki" or "espeak"; the phonemes of the two differ, so results should record the name.
        convert: the conversion of English words to phonemes.
        symbols: those that Kokoro knows; None: any.
    """

    def __init__(self, name: str, convert: Callable[[str], str], symbols: frozenset[str] | None = None) -> None:
        self.name = name
        self._convert = convert
        self._symbols = symbols
        self._cache: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Return the phonemes of ``text``, 1 to ``MAX_PHONEMES`` characters.

        Numbers, money, dates, units and abbreviations are expanded to words first. Characters that English cannot speak
        are left out, with a warning. Characters of the result that are not in Kokoro's vocabulary are kept, with a
        warning; Kokoro drops them itself.

        Raises:
            TextError: the text has no words, only words in other scripts than Latin, or more phonemes than Kokoro
                speaks at once.
        """
        sentence = " ".join(unify_characters(text).split())
        if sentence not in self._cache:
            spoken = expand(_spoken_characters(sentence))
            phonemes = self._convert(spoken).strip() if spoken else ""
            _check_phonemes(phonemes, sentence)
            self._warn_of_unknown_symbols(phonemes, sentence)
            self._cache[sentence] = phonemes
        return self._cache[sentence]

    def _warn_of_unknown_symbols(self, phonemes: str, sentence: str) -> None:
        # Brackets have no sound, nor have the diacritics with which espeak marks syllables.
        sounds = {symbol for symbol in phonemes if unicodedata.category(symbol)[0] not in "MP"}
        unknown = sorted(sounds - self._symbols) if self._symbols else []
        if unknown:
            named = ", ".join(map(repr, unknown))
            logger.warning("sentence %s: Kokoro has no sound for %s: left out", excerpt(sentence), named)


def make_phonemizer(kind: PhonemizerKind = "auto") -> Phonemizer:
    """Create a phonemizer for American English; nothing is downloaded.

    Args:
        kind: "misaki", a dictionary that needs a spaCy model; "espeak"; or "auto", which selects misaki if its spaCy
            model is installed, and espeak otherwise.

    Raises:
        WeightsError: ``kind`` is "misaki" and its spaCy model is not installed.
        ConfigError: ``kind`` is unknown, or espeak cannot be loaded.
    """
    if kind not in ("auto", "misaki", "espeak"):
        raise ConfigError(f"phonemizer {kind!r} is unknown: choose auto, misaki or espeak")
    if kind == "espeak":
        return Phonemizer("espeak", _espeak(), SYMBOLS)
    if _spacy_model_installed():
        return Phonemizer("misaki", _misaki(), SYMBOLS)
    if kind == "misaki":
        raise WeightsError(
            f"phonemizer 'misaki' needs the spaCy model {_SPACY_MODEL}, which is not installed: "
            f"run 'python -m spacy download {_SPACY_MODEL}', or choose espeak"
        )
    return Phonemizer("espeak", _espeak(), SYMBOLS)


def _spoken_characters(sentence: str) -> str:
    """Return a sentence without the characters that English cannot speak, and warn of these.

    Raises:
        TextError: there is no other word.
    """
    foreign = foreign_characters(sentence)
    if not foreign:
        return sentence
    named = ", ".join(
        f"{excerpt(run, 20)} ({script_name(run[0])})" for run in list(dict.fromkeys(foreign))[:NAMED_RUNS]
    )
    if not has_latin_letters(sentence) and any(run[0].isalpha() for run in foreign):
        raise TextError(
            f"text {excerpt(sentence)} has nothing to speak in English, which has no sound for {named}: "
            "write it in Latin letters"
        )
    logger.warning("sentence %s: English cannot speak %s: left out", excerpt(sentence), named)
    return without_foreign_characters(sentence, foreign)


def _check_phonemes(phonemes: str, sentence: str) -> None:
    if not any(character.isalpha() for character in phonemes):
        raise TextError(f"text {excerpt(sentence)} has nothing to speak: give at least one word")
    if len(phonemes) > MAX_PHONEMES:
        raise TextError(
            f"sentence {excerpt(sentence)} has {len(phonemes)} phonemes, Kokoro speaks at most {MAX_PHONEMES} "
            "at once: shorten it, or split the text with split_sentences"
        )


def _spacy_model_installed() -> bool:
    if importlib.util.find_spec(_SPACY_MODEL) is None:
        return False
    import spacy.util

    # misaki makes the same check, and downloads the model at run time if it fails.
    return bool(spacy.util.is_package(_SPACY_MODEL))


def _misaki() -> Callable[[str], str]:
    from misaki.en import G2P

    # As in Kokoro's own pipeline, espeak converts the words that the dictionary lacks.
    with espeak_library():
        from misaki.espeak import EspeakFallback

        fallback = EspeakFallback(british=False)
    g2p = G2P(british=False, fallback=fallback, unk="")
    return lambda text: str(g2p(text)[0])


def _espeak() -> Callable[[str], str]:
    with espeak_library():
        from misaki.espeak import EspeakG2P

        g2p = EspeakG2P("en-us")
    return lambda text: str(g2p(hyphenate_initialisms(text))[0])


def excerpt(text: str, length: int = 60) -> str:
    """Return the first ``length`` characters of a text in quotes, for error messages."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
