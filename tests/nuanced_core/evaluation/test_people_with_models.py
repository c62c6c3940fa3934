"""nuanced_core.evaluation.people with the real models: made-up people, who are stock voices in a room."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import Encoder, Features, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data import rendering
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.evaluation import people, predictors
from nuanced_core.evaluation.people import PeopleEvaluation, PeopleSettings
from nuanced_core.evaluation.predictors import PersonPredictors
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.hearing.whisper_features import FeatureStatistics
from nuanced_core.judges.panel import JudgePanel
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.people.corpus import find_people
from nuanced_core.people.excerpts import recording_hearer

KNOWN = ("af_heart", "am_michael")  # stock voices; the people have the same ones, so each has a voice that fits
RUN = {
    "data": {
        "voices": [*KNOWN],
        "val_voices": ["af_sky"],
        "sentences": ["Open the window, please."],
        "val_sentences": ["Green hills are far away.", "No rain today."],
        "sentences_per_voice": 1,
        "max_phonemes": 32,
    },
    "encoder": {"width": 4, "depth": 1},
}
RECORDED = "He walked along the old road until the lights of the town were behind him."
TEXT = "The hills are far away."


@pytest.fixture
def few_voices(models: ModelSet, monkeypatch: pytest.MonkeyPatch) -> ModelSet:
    """The real models with three stock voices, of which one is held out, and as little to say as there can be."""
    monkeypatch.setattr(rendering, "worker_count", lambda requests, models: 1)
    monkeypatch.setattr(predictors, "MIN_SENTENCES", 1)
    monkeypatch.setattr(people, "held_out_sentences", lambda phonemizer, count: {TEXT: phonemizer(TEXT)})
    few = dataclasses.replace(models)
    names = (*KNOWN, "af_sky")
    loaded: dict[str, Any] = {
        "kokoro": models.kokoro,
        "whisper": models.whisper,
        "phonemizer": models.phonemizer,
        "voices": VoiceBank({name: models.voice_files.packs[name] for name in names}),
    }
    few.__dict__.update(loaded)  # the cached properties
    return few


def _encoder(models: ModelSet) -> StyleEncoder:
    """Return an untrained encoder, which is the mean voice."""
    layers, channels = (models.whisper.layers - 1,), models.whisper.channels
    config = StyleEncoderConfig(
        encoder=Encoder(width=4, depth=1),
        features=Features(),
        whisper="tiny.en",
        layers=layers,
        channels=channels,
        voices=len(KNOWN),
    )
    encoder = StyleEncoder(config)
    packs = torch.stack([models.voices.pack(name) for name in KNOWN])
    encoder.calibrate(FeatureStatistics(torch.zeros(1, channels), torch.ones(1, channels)), packs)
    return encoder


def _record(dataset: Dataset, voice: str, seed: int) -> Tensor:
    phonemes = dataset.models.phonemizer(RECORDED)
    audio = dataset.say(phonemes, dataset.models.voices.style(voice, len(phonemes))[None])
    return degraded(resample(audio, KOKORO_RATE, WHISPER_RATE), WHISPER_RATE, "room", seed)


@pytest.mark.real
def test_people_who_have_the_voice_of_a_stock_voice_are_found(few_voices: ModelSet, tmp_path: Path) -> None:
    run = validate(RunConfig, RUN, "test")
    dataset = Dataset(few_voices, tmp_path / "cache")
    for seed, name in enumerate(KNOWN):
        folder = tmp_path / "people" / f"with_{name}"
        folder.mkdir(parents=True)
        soundfile.write(folder / "a.flac", 0.5 * _record(dataset, name, seed).numpy(), WHISPER_RATE)
    embedders = {name: few_voices.speaker_encoder(name).embed for name in ("campplus", "resemblyzer")}
    panel = JudgePanel(embedders, {name: few_voices.speaker_sha256(name) for name in embedders})
    evaluation = PeopleEvaluation(
        PersonPredictors(_encoder(few_voices), run, dataset, mixes=0),
        run,
        dataset,
        panel,
        recording_hearer(few_voices, dataset.cache),
        PeopleSettings(degraded=False),
    )
    report = evaluation.report(find_people(tmp_path / "people", for_training=False))
    assert report["skipped"] == []
    for speaker, name in zip(report["speakers"], KNOWN, strict=True):
        assert speaker["voices"]["nearest"] == name
        assert {one["voice"] for one in speaker["best_stock"].values()} == {name}
        assert speaker["rows"]["nearest"]["rate_error"] < 0.4  # of a second and a half
    rows = report["rows"]
    for judge in embedders:
        identity = {row: rows[row][f"identity_{judge}"] for row in ("mean", "nearest", "encoder")}
        assert identity["nearest"] > 0.6, (judge, identity)
        assert identity["nearest"] > identity["mean"] + 0.2, (judge, identity)
        assert identity["encoder"] == pytest.approx(identity["mean"], abs=0.02)  # it is not trained
