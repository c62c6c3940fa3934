"""Phonemizers, which convert American English to the phonemes that Kokoro speaks.

    phonemizer = make_phonemizer()
    phonemes = [phonemizer(sentence) for sentence in split_sentences("Hello there. How are you?")]

Each character of the result is one phoneme; Kokoro speaks at most ``MAX_PHONEMES`` of them at once.
"""

import importlib.util
from collections.abc import Callable
from typing import Literal

from nuanced_core.errors import ConfigError, TextError, WeightsError

__all__ = ["MAX_PHONEMES", "Phonemizer", "PhonemizerKind", "excerpt", "make_phonemizer"]

MAX_PHONEMES = 510  # phonemes, punctuation and spaces included; Kokoro's context is 512 with start and end token

PhonemizerKind = Literal["auto", "misaki", "espeak"]

_SPACY_MODEL = "en_core_web_sm"


class Phonemizer:
    """Converts sentences to Kokoro's phonemes, each sentence once.

    Attributes:
        name: "misaki" or "espeak"; the phonemes of the two differ, so results should record the name.
    """

    def __init__(self, name: str, convert: Callable[[str], str]) -> None:
        self.name = name
        self._convert = convert
        self._cache: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Return the phonemes of ``text``, 1 to ``MAX_PHONEMES`` characters.

        Characters that are not in Kokoro's vocabulary are kept; Kokoro drops them itself.

        Raises:
            TextError: the text has no words, or more phonemes than Kokoro speaks at once.
        """
        sentence = " ".join(text.split())
        if sentence not in self._cache:
            phonemes = self._convert(sentence).strip() if sentence else ""
            _check_phonemes(phonemes, sentence)
            self._cache[sentence] = phonemes
        return self._cache[sentence]


def make_phonemizer(kind: PhonemizerKind = "auto") -> Phonemizer:
    """Create a phonemizer for American English; nothing is downloaded.

    Args:
        kind: "misaki", a dictionary that needs a spaCy model; "espeak"; or "auto", which selects misaki if its spaCy
            model is installed, and espeak otherwise.

    Raises:
        WeightsError: ``kind`` is "misaki" and its spaCy model is not installed.
        ConfigError: ``kind`` is unknown.
    """
    if kind not in ("auto", "misaki", "espeak"):
        raise ConfigError(f"phonemizer {kind!r} is unknown: choose auto, misaki or espeak")
    if kind == "espeak":
        return Phonemizer("espeak", _espeak())
    if _spacy_model_installed():
        return Phonemizer("misaki", _misaki())
    if kind == "misaki":
        raise WeightsError(
            f"phonemizer 'misaki' needs the spaCy model {_SPACY_MODEL}, which is not installed: "
            f"run 'python -m spacy download {_SPACY_MODEL}', or choose espeak"
        )
    return Phonemizer("espeak", _espeak())


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
    from misaki.espeak import EspeakFallback

    # As in Kokoro's own pipeline, espeak converts the words that the dictionary lacks.
    g2p = G2P(british=False, fallback=EspeakFallback(british=False), unk="")
    return lambda text: str(g2p(text)[0])


def _espeak() -> Callable[[str], str]:
    from misaki.espeak import EspeakG2P

    g2p = EspeakG2P("en-us")
    return lambda text: str(g2p(text)[0])


def excerpt(text: str, length: int = 60) -> str:
    """Return the first ``length`` characters of a text in quotes, for error messages."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
