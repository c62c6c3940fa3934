"""TODO."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nuanced_core.config.settings import Data, Mixes
from nuanced_core.errors import ConfigError, TextError
from nuanced_core.hashing import derived_seed
from nuanced_core.kokoro.mixes import mixed_voices, style
from nuanced_core.kokoro.model import PACK_ROWS
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import load_sentences, spoken_words, test_sentences_in

__all__ = ["Utterance", "plan", "styles"]


@dataclass(frozen=True)
class Utterance:
    """A sentence in a voice."""

    voice: str
    text: str
    phonemes: str
    phoneme_count: int  # of which the style is: a voice has one for each
    style: Tensor  # (256,)
    seed: int  # of Kokoro's noise


def plan(
    data: Data, mixes: Mixes, voices: VoiceBank, phonemizer: Phonemizer
) -> tuple[list[Utterance], list[Utterance]]:
    """Who says what: training and validation utterances, with no voice and no sentence in both.

    Made-up voices are mixed of the training voices and speak training sentences; validation does not know of them.

    Raises:
        ConfigError, VoiceError, TextError: a voice or a sentence is missing, unknown, on both sides, or kept for the
            final evaluation; or there are too few voices to mix, or too few validation sentences.
    """
    train_voices = voices.training_voices(data.voices, data.val_voices)
    train_texts = _sentences(data.sentences, "data.sentences", phonemizer, data.max_phonemes)
    val_texts = _sentences(data.val_sentences, "data.val_sentences", phonemizer, data.max_phonemes)
    _refuse_shared(train_texts, val_texts)
    if len(val_texts) < 2:
        raise ConfigError(
            f"data.val_sentences: {next(iter(val_texts))!r} is the only one; at least 2 are needed: a voice is heard "
            "saying another sentence than it speaks"
        )

    def spoken(
        name: str, styled: Callable[[int], Tensor], texts: dict[str, str], count: int, rows: Sequence[int] = ()
    ) -> list[Utterance]:
        rng = random.Random(f"{data.seed}/{name}")
        utterances = []
        for text in rng.sample(list(texts), min(count, len(texts))):
            row = rng.choice(rows) if rows else len(texts[text])
            utterances.append(Utterance(name, text, texts[text], row, styled(row), derived_seed(data.seed, name, text)))
        return utterances

    def stock(names: Sequence[str], texts: dict[str, str], count: int) -> list[Utterance]:
        return [u for name in names for u in spoken(name, partial(voices.style, name), texts, count)]

    train = stock(train_voices, train_texts, data.sentences_per_voice)
    any_row = _sentences(data.sentences, "data.sentences", phonemizer, PACK_ROWS) if mixes.rows == "any" else {}
    rows = sorted(len(phonemes) for phonemes in any_row.values())
    for name, styled in _mixed_styles(mixes, train_voices, data.seed, voices).items():
        train += spoken(name, styled, train_texts, mixes.sentences, rows)
    return train, stock(data.val_voices, val_texts, data.val_sentences_per_voice)


def styles(data: Data, mixes: Mixes, voices: VoiceBank) -> dict[str, Callable[[int], Tensor]]:
    """Of each training voice, made-up ones included, what style (256,) it has for a phoneme count.

    Raises:
        ConfigError, VoiceError: as ``plan``.
    """
    names = voices.training_voices(data.voices, data.val_voices)
    stock = {name: partial(voices.style, name) for name in names}
    return {**stock, **_mixed_styles(mixes, names, data.seed, voices)}


def _mixed_styles(
    mixes: Mixes, train_voices: Sequence[str], seed: int, voices: VoiceBank
) -> dict[str, Callable[[int], Tensor]]:
    names = sorted(train_voices)  # in whatever order they are listed, their mixes are the same
    packs = torch.stack([voices.pack(name) for name in names])
    return {mix.name: partial(style, mix, packs) for mix in mixed_voices(mixes, names, seed)}


def _refuse_shared(train_texts: Iterable[str], val_texts: Iterable[str]) -> None:
    """Refuse a sentence, whatever its case and punctuation, that is on both sides or in the test split."""
    for setting, texts in (("data.sentences", train_texts), ("data.val_sentences", val_texts)):
        for text in test_sentences_in(texts):
            raise ConfigError(f"{setting}: {text!r} is a test sentence, kept for the final evaluation; take it out")
    train = {spoken_words(text) for text in train_texts}
    for text in val_texts:
        if spoken_words(text) in train:
            raise ConfigError(f"data.val_sentences: {text!r} is a training sentence too; take it out of one of the two")


def _sentences(
    source: str | tuple[str, ...], setting: str, phonemizer: Phonemizer, max_phonemes: int
) -> dict[str, str]:
    """Sentences and their phonemes, without those that are too long."""
    try:
        texts = load_sentences(source)
    except TextError as error:
        raise TextError(f"{setting}: {error}") from None
    try:
        phonemes = {text: phonemizer(text) for text in texts}
    except TextError as error:
        raise TextError(f"{setting}: {error}") from None
    kept = {text: p for text, p in phonemes.items() if len(p) <= max_phonemes}
    if not kept:
        shortest = min(len(p) for p in phonemes.values())
        raise ConfigError(
            f"data.max_phonemes: {max_phonemes}: no sentence of {setting} is that short; at least {shortest} is needed"
        )
    return kept
