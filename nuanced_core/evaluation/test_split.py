"""Evaluation on the test split: an encoder and its baselines on voices and sentences that no sweep uses.

The style for a test sentence is predicted from a clip of the same test voice with another test sentence, and spoken on
the true voice's alignment and with its noise. So the input clip never contains the sentence that is spoken.

Dimensions: V test voices, U sentences per voice, B = V * U utterances, S = 256 style.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.config.settings import Condition, Data, Objective, RunConfig
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.utterances import Utterance
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, TextError, WeightsError
from nuanced_core.evaluation import metrics
from nuanced_core.evaluation.comparison import Comparison, Measures, PitchTracker, SpeakerEmbedder
from nuanced_core.evaluation.metrics import as_json, estimate
from nuanced_core.evaluation.predictors import (
    AUDIO_PREDICTORS,
    StylePredictors,
    load_export,
    open_dataset,
    render_clips,
)
from nuanced_core.hashing import derived_seed
from nuanced_core.hearing.augmentation import DEGRADATIONS
from nuanced_core.judges.identity import Resemblyzer
from nuanced_core.judges.pitch import CrepePitch
from nuanced_core.kokoro.voices import TEST_VOICES, VoiceBank
from nuanced_core.progress import progress_bar
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import load_sentences, test_sentences_in

__all__ = [
    "COMPARED_BASELINES",
    "PREDICTORS",
    "evaluate_encoder",
    "evaluate_test_split",
    "held_out_sentences",
    "held_out_utterances",
]

logger = logging.getLogger(__name__)

PREDICTORS = ("mean", "nearest", "ridge", "encoder", "oracle")  # the oracle predicts the true style
COMPARED_BASELINES = ("nearest", "ridge")  # whose measures are subtracted from the encoder's, under "gains"
AVERAGED_MEASURES = (
    "stft", "style_cosine", "timbre_cosine", "prosody_cosine",
    "f0_semitones", "f0_crepe_semitones", "energy_correlation", "duration_error",
)  # fmt: skip
PREFERRED_PHONEMES = range(25, 71)  # length of the preferred test sentences: 2 to 5 s of speech


def evaluate_test_split(
    model: str | Path,
    *,
    source: str = "auto",
    sentences: int = 3,
    identity: bool | None = None,
    robustness: bool = True,
) -> dict[str, Any]:
    """Evaluate an exported encoder on the test split, see ``evaluate_encoder``.

    Args:
        model: folder that ``nuanced export`` wrote.
        source: of the model files: auto, hub, packages, or a folder.
        sentences: test sentences per test voice.
        identity: whether to include the measures that need the extra ``eval``; None includes them if it is installed.
        robustness: whether to evaluate degraded clips too.

    Raises:
        NuancedError: a model file, a voice or the extra is missing, or the encoder was trained on the test split.
    """
    encoder, run = load_export(model)
    embed, track_pitch = _optional_tools(identity, source)
    dataset = open_dataset(model, encoder.config.whisper, source)
    report = evaluate_encoder(
        encoder, run, dataset, sentences=sentences, embed=embed, track_pitch=track_pitch, robustness=robustness
    )
    return {"model": str(model), **report}


def evaluate_encoder(
    encoder: StyleEncoder,
    run: RunConfig,
    dataset: Dataset,
    *,
    sentences: int = 3,
    embed: SpeakerEmbedder | None = None,
    track_pitch: PitchTracker | None = None,
    robustness: bool = True,
) -> dict[str, Any]:
    """Evaluate an encoder, its baselines and the oracle on the test split.

    Args:
        run: the settings of the run that trained the encoder.
        sentences: test sentences per test voice; there are nine test voices.
        embed: speaker encoder, for ``identity``.
        track_pitch: pitch tracker, for ``f0_crepe_semitones``.
        robustness: whether to evaluate clips with noise, through a telephone and in a room too.

    Returns:
        The report that ``nuanced evaluate --json`` prints, without ``model``. ``rows`` has for each predictor:
        ``stft`` (mel-STFT loss of whole sentences); ``style_cosine``, ``timbre_cosine`` and ``prosody_cosine`` (of the
        style and its halves); ``skill`` (with the default objective's weights); ``f0_semitones`` (error of Kokoro's
        pitch where both are voiced) and ``f0_crepe_semitones`` (of the audio's pitch, by CREPE);
        ``f0_spread_correlation`` (of the pitch's spread, over utterances); ``energy_correlation`` (of curves, mean over
        utterances); ``duration_error`` (of the predicted length, relative); ``identity`` (cosine of the speaker
        embeddings of the speech and of the input clip, scaled so that 0 is the mean of the other test voices that speak
        the sentence and 1 the same voice that speaks it). Each has a 95 % interval over voices, ``…_ci``. ``gains`` has
        the encoder's measures minus those of nearest and of ridge, with intervals paired by voice.

    Raises:
        NuancedError: the encoder was trained on the test split, a voice is missing, or the cache cannot be written.
    """
    texts = held_out_sentences(dataset.models.phonemizer, sentences)
    utterances = held_out_utterances(dataset.models.voices, texts)
    _check_test_split_unseen(run.data, dataset.models.voices)
    predictors = StylePredictors(encoder, run, dataset)
    comparison = Comparison(dataset, render_clips(dataset, utterances), sentences, embed, track_pitch)
    conditions = DEGRADATIONS if robustness else ()
    with progress_bar("evaluating", len(PREDICTORS) + len(conditions)) as advance:
        styles = _predict_styles(predictors, comparison, "clean") | {"oracle": comparison.styles}
        measures = {}
        for name in PREDICTORS:
            measures[name] = comparison.measure(styles[name], noise=int(name == "oracle"))
            advance()
        degraded = {}
        for condition in conditions:
            degraded[condition] = _robustness(predictors, comparison, condition, measures)
            advance()
    report: dict[str, Any] = {
        "rows": _estimates(measures, comparison.bounds(), Objective()),
        "gains": {name: _gains(measures["encoder"], measures[name]) for name in COMPARED_BASELINES},
        "voices": sorted(TEST_VOICES),
        "sentences": sentences,
        "texts": list(texts),
        "whisper": encoder.config.whisper,
        "ridge_penalties": list(predictors.baselines.ridge.penalties),
    }
    return report | ({"robustness": degraded} if robustness else {})


def held_out_sentences(phonemizer: Phonemizer, count: int) -> dict[str, str]:
    """Select sentences of the test split, spread evenly over their lengths.

    Sentences of 2 to 5 s are preferred while there are enough of them. The selection is the same for every voice and
    model.

    Returns:
        Phonemes by text.

    Raises:
        ConfigError: the test split has fewer sentences, or ``count`` is below 2, which leaves no other sentence for the
            input clip.
    """
    texts = load_sentences("test")
    if not 2 <= count <= len(texts):
        raise ConfigError(f"sentences: {count}: take 2 to {len(texts)}, as many as the test split has")
    by_length = sorted(texts, key=lambda text: (len(phonemizer(text)), text))
    preferred = [text for text in by_length if len(phonemizer(text)) in PREFERRED_PHONEMES]
    pool = preferred if len(preferred) >= count else by_length
    return {text: phonemizer(text) for text in (pool[(2 * i + 1) * len(pool) // (2 * count)] for i in range(count))}


def held_out_utterances(voices: VoiceBank, sentences: Mapping[str, str]) -> list[Utterance]:
    """Return an utterance of each sentence (text → phonemes) by each test voice, sorted by voice.

    Raises:
        VoiceError: a test voice is missing.
    """
    packs = {name: voices.pack(name, "test voices") for name in sorted(TEST_VOICES)}
    return [
        Utterance(name, text, phonemes, len(phonemes), packs[name][len(phonemes) - 1], derived_seed("test", name, text))
        for name in packs
        for text, phonemes in sentences.items()
    ]


def _optional_tools(identity: bool | None, source: str) -> tuple[SpeakerEmbedder | None, PitchTracker | None]:
    """Load the speaker encoder and the pitch tracker of the extra ``eval``."""
    if identity is False:
        return None, None
    try:
        return Resemblyzer(source), CrepePitch()
    except (ConfigError, WeightsError) as error:
        if identity:
            raise
        logger.warning("left out: %s", error)
        return None, None


def _estimates(measures: Mapping[str, Measures], bounds: Measures, objective: Objective) -> dict[str, dict[str, Any]]:
    """Return the measures of each predictor with their intervals."""
    loss = {name: objective.stft * m["stft"] + objective.style * m["style"] for name, m in measures.items()}
    estimates = {}
    for name, measured in measures.items():
        found = {
            measure: estimate(metrics.mean, measured[measure]) for measure in AVERAGED_MEASURES if measure in measured
        }
        found["skill"] = estimate(metrics.skill, loss[name], loss["mean"], loss["oracle"])
        spreads = measured["f0_spread"], bounds["f0_spread"]
        found["f0_spread_correlation"] = estimate(metrics.correlation, *spreads)
        if "heard_cosine" in measured:
            cosines = measured["heard_cosine"], bounds["other_speaker_cosine"], bounds["same_speaker_cosine"]
            found["identity"] = estimate(metrics.speaker_identity, *cosines)
        estimates[name] = as_json(found)
    return estimates


def _gains(encoder: Measures, baseline: Measures) -> dict[str, Any]:
    """Return the encoder's measures minus a baseline's, voice by voice, so that the intervals are paired."""
    shared = [name for name in (*AVERAGED_MEASURES, "heard_cosine") if name in encoder and name in baseline]
    return as_json({name: estimate(metrics.mean, encoder[name] - baseline[name]) for name in shared})


def _robustness(
    predictors: StylePredictors, comparison: Comparison, condition: Condition, clean: Mapping[str, Measures]
) -> dict[str, dict[str, Any]]:
    """Return the style cosine from degraded clips, and its loss against clean clips, of each audio predictor."""
    styles = _predict_styles(predictors, comparison, condition)
    found = {}
    for name in AUDIO_PREDICTORS:
        cosine = F.cosine_similarity(styles[name], comparison.styles).double().numpy().reshape(comparison.shape)
        loss = clean[name]["style_cosine"] - cosine
        found[name] = as_json({"style_cosine": estimate(metrics.mean, cosine), "loss": estimate(metrics.mean, loss)})
    return found


def _predict_styles(predictors: StylePredictors, comparison: Comparison, condition: Condition) -> dict[str, Tensor]:
    """Predict styles (B, S) from the input clips in a condition, for each predictor but the oracle."""
    found: dict[str, list[Tensor]] = {}
    for clip, phoneme_count in zip(comparison.input_clips, comparison.phoneme_counts, strict=True):
        batch = comparison.dataset.batch(
            [clip], predictors.layers, [condition], speaker=predictors.encoder.config.features
        )
        for name, style in predictors(batch.features, batch.mask, [phoneme_count], batch.speaker).items():
            found.setdefault(name, []).append(style)
    return {name: torch.cat(styles) for name, styles in found.items()}


def _check_test_split_unseen(data: Data, voices: VoiceBank) -> None:
    """Raise ConfigError if a run's settings use a test voice or a test sentence."""
    voices.training_voices(data.voices, data.val_voices)
    for setting, source in (("data.sentences", data.sentences), ("data.val_sentences", data.val_sentences)):
        try:
            seen = test_sentences_in(load_sentences(source))
        except TextError:
            logger.warning("%s: %r is missing and could not be checked for test sentences", setting, source)
            continue
        if seen:
            raise ConfigError(
                f"{setting}: {seen[0]!r} is a test sentence; an encoder trained on it cannot be evaluated"
            )
