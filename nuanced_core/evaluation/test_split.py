"""The final evaluation: test voices and test sentences that no sweep sees, an encoder beside what it has to beat.

Each test voice is heard saying one test sentence and speaks another one, in the style of each row of the table, on the
alignment and with the noise of the true voice: what a row hears is not what it has to say.

Dimensions: V test voices, U sentences a voice, B = V * U utterances, S = 256 style.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.config.settings import Condition, Data, Objective, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.utterances import Utterance
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, TextError
from nuanced_core.evaluation import metrics
from nuanced_core.evaluation.comparison import Comparison, Embed, Measures, Pitch
from nuanced_core.evaluation.metrics import as_json, estimate
from nuanced_core.evaluation.predictors import HEARING_PREDICTORS, StylePredictors, rendered
from nuanced_core.hashing import derived_seed
from nuanced_core.hearing.augmentation import DEGRADATIONS
from nuanced_core.kokoro.voices import TEST_VOICES, VoiceBank
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import load_sentences, test_sentences_in

__all__ = ["BEATEN", "ROWS", "evaluate", "held_out_sentences", "held_out_utterances", "load_export"]

logger = logging.getLogger(__name__)

ROWS = ("mean", "nearest", "ridge", "encoder", "oracle")
MEANS = (
    "stft", "style_cosine", "timbre_cosine", "prosody_cosine",
    "f0_semitones", "f0_crepe_semitones", "energy_correlation", "duration_error",
)  # fmt: skip
BEATEN = ("nearest", "ridge")
LENGTHS = range(25, 71)  # phonemes of a test sentence that is taken first: 2 to 5 s of speech


def load_export(folder: Path) -> tuple[StyleEncoder, RunConfig]:
    """An encoder that ``nuanced export`` wrote, and the settings of the run that trained it.

    Raises:
        WeightsError, ConfigError: the folder holds no such encoder.
    """
    encoder = StyleEncoder.from_pretrained(folder)
    file = folder / "config.json"
    run = json.loads(file.read_text(encoding="utf-8")).get("run")
    if not isinstance(run, dict):
        raise ConfigError(f"{file}: run: the training run's settings are missing; export the encoder again")
    return encoder, validate(RunConfig, run, f"{file}: run")


def held_out_sentences(phonemizer: Phonemizer, count: int) -> dict[str, str]:
    """Some sentences of the test split and their phonemes, spread evenly over lengths.

    Those of 2 to 5 s are taken while there are enough of them; the choice is the same for every voice and model.

    Raises:
        ConfigError: there are not so many, or a voice could not be heard saying another sentence than it speaks.
    """
    texts = load_sentences("test")
    if not 2 <= count <= len(texts):
        raise ConfigError(f"sentences: {count}: take 2 to {len(texts)}, as many as the test split has")
    by_length = sorted(texts, key=lambda text: (len(phonemizer(text)), text))
    short = [text for text in by_length if len(phonemizer(text)) in LENGTHS]
    choice = short if len(short) >= count else by_length
    return {text: phonemizer(text) for text in (choice[(2 * i + 1) * len(choice) // (2 * count)] for i in range(count))}


def held_out_utterances(voices: VoiceBank, sentences: Mapping[str, str]) -> list[Utterance]:
    """Each test voice, by name, saying each of the sentences (text → phonemes).

    Raises:
        VoiceError: a test voice is not at hand.
    """
    packs = {name: voices.pack(name, "test voices") for name in sorted(TEST_VOICES)}
    return [
        Utterance(name, text, phonemes, len(phonemes), packs[name][len(phonemes) - 1], derived_seed("test", name, text))
        for name in packs
        for text, phonemes in sentences.items()
    ]


def evaluate(
    encoder: StyleEncoder,
    run: RunConfig,
    dataset: Dataset,
    *,
    sentences: int = 3,
    embed: Embed | None = None,
    pitch: Pitch | None = None,
    robustness: bool = True,
) -> dict[str, Any]:
    """The encoder, what it has to beat and the oracle on the test split, as ``nuanced evaluate --json`` prints them.

    Of each row: ``stft`` (mel-STFT loss of whole sentences), ``style_cosine`` and that of its ``timbre_`` and
    ``prosody_`` half, ``skill`` (by the default objective's weights), ``f0_semitones`` (error of Kokoro's pitch where
    both are voiced; ``f0_crepe_semitones`` that of the sound, by CREPE), ``f0_spread_correlation`` (of the pitch's
    spread, over utterances), ``energy_correlation`` (of curves, mean over utterances), ``duration_error`` (of the
    predicted length, relative) and ``identity``: speaker cosine to the clip that was heard, where 0 is other test
    voices saying the sentence and 1 the same voice saying it. Each has an interval of 95 % over voices, ``…_ci``.
    ``gains`` has the differences of the encoder's measures and those of nearest and of ridge, with intervals that are
    paired by voice.

    Args:
        sentences: test sentences that each of the nine test voices speaks.
        embed: a speaker encoder, for ``identity``.
        pitch: a pitch tracker, for ``f0_crepe_semitones``.
        robustness: also hear the clips with noise, through a telephone and in a room.

    Raises:
        NuancedError: the encoder saw the test split, a voice is not at hand, or the cache cannot be written.
    """
    texts = held_out_sentences(dataset.models.phonemizer, sentences)
    utterances = held_out_utterances(dataset.models.voices, texts)
    _refuse_test_split(run.data, dataset.models.voices)
    rows = StylePredictors(encoder, run, dataset)
    table = Comparison(dataset, rendered(dataset, utterances), sentences, embed, pitch)
    styles = _heard_styles(rows, table, "clean") | {"oracle": table.styles}
    measures = {}
    for name in ROWS:
        logger.info("%s: %s utterances", name, len(table.clips))
        measures[name] = table.measure(styles[name], noise=int(name == "oracle"))
    report: dict[str, Any] = {
        "rows": _estimates(measures, table.bounds(), Objective()),
        "gains": {name: _gains(measures["encoder"], measures[name]) for name in BEATEN},
        "voices": sorted(TEST_VOICES),
        "sentences": sentences,
        "texts": list(texts),
        "whisper": encoder.config.whisper,
        "ridge_penalties": list(rows.ridge.penalties),
    }
    if robustness:
        report["robustness"] = {kind: _robustness(rows, table, kind, measures) for kind in DEGRADATIONS}
    return report


def _estimates(measures: Mapping[str, Measures], bounds: Measures, objective: Objective) -> dict[str, dict[str, Any]]:
    loss = {name: objective.stft * m["stft"] + objective.style * m["style"] for name, m in measures.items()}
    rows = {}
    for name, measured in measures.items():
        found = {metric: estimate(metrics.mean, measured[metric]) for metric in MEANS if metric in measured}
        found["skill"] = estimate(metrics.skill, loss[name], loss["mean"], loss["oracle"])
        spreads = measured["f0_spread"], bounds["f0_spread"]
        found["f0_spread_correlation"] = estimate(metrics.correlation, *spreads)
        if "heard_cosine" in measured:
            cosines = measured["heard_cosine"], bounds["stranger_cosine"], bounds["same_cosine"]
            found["identity"] = estimate(metrics.normalised, *cosines)
        rows[name] = as_json(found)
    return rows


def _gains(encoder: Measures, other: Measures) -> dict[str, Any]:
    """How much larger the encoder's measures are than another row's, voice by voice: their intervals are paired."""
    shared = [name for name in (*MEANS, "heard_cosine") if name in encoder and name in other]
    return as_json({name: estimate(metrics.mean, encoder[name] - other[name]) for name in shared})


def _robustness(
    rows: StylePredictors, table: Comparison, condition: Condition, clean: Mapping[str, Measures]
) -> dict[str, dict[str, Any]]:
    """Of rows that hear: style cosine when the clip is degraded, and what is lost against the clean clip."""
    styles = _heard_styles(rows, table, condition)
    found = {}
    for name in HEARING_PREDICTORS:
        cosine = F.cosine_similarity(styles[name], table.styles).double().numpy().reshape(table.shape)
        lost = clean[name]["style_cosine"] - cosine
        found[name] = as_json({"style_cosine": estimate(metrics.mean, cosine), "loss": estimate(metrics.mean, lost)})
    return found


def _heard_styles(rows: StylePredictors, table: Comparison, condition: Condition) -> dict[str, Tensor]:
    """Styles (B, 256) of each row but the oracle, which hear the clips in a condition."""
    found: dict[str, list[Tensor]] = {}
    for heard, count in zip(table.heard, table.counts, strict=True):
        batch = table.dataset.batch([heard], rows.layers, [condition])
        for name, style in rows(batch.features, batch.mask, [count]).items():
            found.setdefault(name, []).append(style)
    return {name: torch.cat(styles) for name, styles in found.items()}


def _refuse_test_split(data: Data, voices: VoiceBank) -> None:
    voices.training_voices(data.voices, data.val_voices)
    for setting, source in (("data.sentences", data.sentences), ("data.val_sentences", data.val_sentences)):
        try:
            seen = test_sentences_in(load_sentences(source))
        except TextError:
            logger.warning("%s: %r is not here: nobody checked it for test sentences", setting, source)
            continue
        if seen:
            raise ConfigError(f"{setting}: {seen[0]!r} is a test sentence; an encoder that saw it cannot be evaluated")
