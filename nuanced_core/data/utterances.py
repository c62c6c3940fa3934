"""Utterances: which voice speaks which sentence, split into training and validation."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nuanced_core.config.settings import Data, Mixes
from nuanced_core.errors import ConfigError, TextError
from nuanced_core.hashing import derived_seed
from nuanced_core.kokoro.mixes import mixed_style, mixed_voices
from nuanced_core.kokoro.model import PACK_ROWS
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import load_sentences, spoken_words, test_sentences_in

__all__ = [
    "Split",
    "StyleOf",
    "Utterance",
    "found_utterances",
    "found_voice",
    "plan_utterances",
    "voice_group",
    "voice_styles",
]

StyleOf = Callable[[int], Tensor]  # phoneme count to style (256,)
_FOUND = "found-"  # before the names of voices that were found for people


@dataclass(frozen=True)
class Utterance:
    """A sentence in a voice."""

    voice: str
    text: str
    phonemes: str
    phoneme_count: int  # for which ``style`` is; a voice has one style for each phoneme count
    style: Tensor  # (256,)
    seed: int  # of Kokoro's noise


class Split(NamedTuple):
    """Training and validation utterances, with no voice and no sentence in both."""

    train: list[Utterance]  # stock voices first, then mixes
    validation: list[Utterance]


def plan_utterances(data: Data, mixes: Mixes, voices: VoiceBank, phonemizer: Phonemizer) -> Split:
    """Choose the sentences that each voice speaks.

    Mixes are made of the training voices and speak training sentences; they do not change the validation utterances.

    Raises:
        ConfigError, VoiceError, TextError: a voice or a sentence is missing, unknown, on both sides, or reserved for
            the final evaluation; or there are too few voices to mix, or too few validation sentences.
    """
    train_voices = voices.training_voices(data.voices, data.val_voices)
    train_texts = _sentences(data.sentences, "data.sentences", phonemizer, data.max_phonemes)
    val_texts = _sentences(data.val_sentences, "data.val_sentences", phonemizer, data.max_phonemes)
    _check_split(train_texts, val_texts)

    def stock_utterances(names: Sequence[str], texts: dict[str, str], count: int) -> list[Utterance]:
        return [u for name in names for u in _utterances_of(data, name, partial(voices.style, name), texts, count)]

    train = stock_utterances(train_voices, train_texts, data.sentences_per_voice)
    all_texts = _sentences(data.sentences, "data.sentences", phonemizer, PACK_ROWS) if mixes.rows == "any" else {}
    style_counts = sorted(len(phonemes) for phonemes in all_texts.values())
    for name, style_of in _mix_styles(mixes, train_voices, data.seed, voices).items():
        train += _utterances_of(data, name, style_of, train_texts, mixes.sentences, style_counts)
    return Split(train, stock_utterances(data.val_voices, val_texts, data.val_sentences_per_voice))


def found_utterances(data: Data, voices: Mapping[str, StyleOf], phonemizer: Phonemizer) -> list[Utterance]:
    """Choose the training sentence that each of some found voices speaks.

    Raises:
        ConfigError, TextError: as ``plan_utterances``.
    """
    texts = _sentences(data.sentences, "data.sentences", phonemizer, data.max_phonemes)
    return [u for name, style_of in voices.items() for u in _utterances_of(data, name, style_of, texts, 1)]


def found_voice(speaker: str, number: str) -> str:
    """Return the name of a voice that was found for a person."""
    return f"{_FOUND}{speaker}-{number}"


def voice_group(voice: str) -> str:
    """Return what the voices that were found for one person have in common; other voices are groups of their own."""
    return voice.rpartition("-")[0] if voice.startswith(_FOUND) else voice


def voice_styles(data: Data, mixes: Mixes, voices: VoiceBank) -> dict[str, StyleOf]:
    """Return, for each training voice and each mix, a function from a phoneme count to the voice's style (256,).

    Raises:
        ConfigError, VoiceError: as ``plan_utterances``.
    """
    names = voices.training_voices(data.voices, data.val_voices)
    stock = {name: partial(voices.style, name) for name in names}
    return {**stock, **_mix_styles(mixes, names, data.seed, voices)}


def _utterances_of(
    data: Data, voice: str, style_of: StyleOf, texts: Mapping[str, str], count: int, style_counts: Sequence[int] = ()
) -> list[Utterance]:
    """Return utterances of a voice; a style is for a random one of ``style_counts``, if there are any."""
    rng = random.Random(f"{data.seed}/{voice}")
    utterances = []
    for text in rng.sample(list(texts), min(count, len(texts))):
        n = rng.choice(style_counts) if style_counts else len(texts[text])
        seed = derived_seed(data.seed, voice, text)
        utterances.append(Utterance(voice, text, texts[text], n, style_of(n), seed))
    return utterances


def _mix_styles(mixes: Mixes, train_voices: Sequence[str], seed: int, voices: VoiceBank) -> dict[str, StyleOf]:
    names = sorted(train_voices)  # so that mixes do not depend on the order in which voices are listed
    packs = torch.stack([voices.pack(name) for name in names])
    return {mix.name: partial(mixed_style, mix, packs) for mix in mixed_voices(mixes, names, seed)}


def _check_split(train_texts: Collection[str], val_texts: Collection[str]) -> None:
    """Check that no sentence, ignoring case and punctuation, is on both sides or in the test split.

    Raises:
        ConfigError: one is, or there is only one validation sentence.
    """
    for setting, texts in (("data.sentences", train_texts), ("data.val_sentences", val_texts)):
        for text in test_sentences_in(texts):
            raise ConfigError(f"{setting}: {text!r} is a test sentence, reserved for the final evaluation; remove it")
    train = {spoken_words(text) for text in train_texts}
    for text in val_texts:
        if spoken_words(text) in train:
            raise ConfigError(f"data.val_sentences: {text!r} is a training sentence too; remove it from one of the two")
    if len(val_texts) < 2:
        raise ConfigError(
            f"data.val_sentences: {next(iter(val_texts))!r} is the only one; give at least 2: the encoder is scored on "
            "another sentence than it gets"
        )


def _sentences(
    source: str | tuple[str, ...], setting: str, phonemizer: Phonemizer, max_phonemes: int
) -> dict[str, str]:
    """Return sentences and their phonemes, without those that are too long."""
    try:
        texts = load_sentences(source)
        phonemes = {text: phonemizer(text) for text in texts}
    except TextError as error:
        raise TextError(f"{setting}: {error}") from None
    kept = {text: p for text, p in phonemes.items() if len(p) <= max_phonemes}
    if not kept:
        shortest = min(len(p) for p in phonemes.values())
        raise ConfigError(
            f"data.max_phonemes: {max_phonemes}: every sentence of {setting} is longer; set at least {shortest}"
        )
    return kept
