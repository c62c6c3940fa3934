"""nuanced_core.evaluation.test_split: its sentences and utterances, what the report includes, and its errors."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nuanced_core.config.settings import Models
from nuanced_core.errors import ConfigError, VoiceError
from nuanced_core.evaluation import predictors, test_split
from nuanced_core.evaluation.test_split import evaluate_test_split, held_out_sentences, held_out_utterances
from nuanced_core.kokoro.voices import TEST_VOICES, VoiceBank
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import load_sentences
from tests.fakes import band_embedding, fake_models, held_out_models, loudness_pitch
from tests.nuanced_core.evaluation.conftest import SplitSetup

PREDICTORS = ("mean", "nearest", "ridge", "encoder", "oracle")
LETTERS = Phonemizer("letters", lambda text: text)
TEST_SENTENCE = load_sentences("test")[3]
MISSING_EXTRA = "speaker identity needs Resemblyzer; pip install 'nuanced-speech[eval]'"


def test_sentences_belong_to_the_test_split_only_and_do_not_depend_on_the_phonemizer_s_name() -> None:
    found = held_out_sentences(LETTERS, 5)
    assert len(found) == 5 and set(found) <= set(load_sentences("test"))
    assert not set(found) & {*load_sentences("train"), *load_sentences("validation")}
    assert found == held_out_sentences(Phonemizer("again", lambda text: text), 5)
    assert all(phonemes == text for text, phonemes in found.items())


def test_sentences_take_2_to_5_seconds_and_are_spread_over_the_lengths() -> None:
    preferred = sorted(len(text) for text in load_sentences("test") if 25 <= len(text) <= 70)
    assert len(preferred) == 21
    lengths = [len(phonemes) for phonemes in held_out_sentences(LETTERS, 3).values()]
    thirds = [preferred[:7], preferred[7:14], preferred[14:]]
    assert all(length in third for length, third in zip(lengths, thirds, strict=True))
    assert sorted(held_out_sentences(LETTERS, 21)) == sorted(t for t in load_sentences("test") if 25 <= len(t) <= 70)


@pytest.mark.parametrize("count", [22, 40])
def test_sentences_of_all_lengths_are_taken_if_there_are_too_few_of_2_to_5_seconds(count: int) -> None:
    found = held_out_sentences(LETTERS, count)
    assert len(found) == count
    texts = load_sentences("test")
    assert max(map(len, found)) >= sorted(map(len, texts))[-2] and min(map(len, found)) <= sorted(map(len, texts))[1]


@pytest.mark.parametrize("count", [-1, 0, 1, 41])
def test_impossible_number_of_sentences_raises(count: int) -> None:
    with pytest.raises(ConfigError, match=f"^sentences: {count}: take 2 to 40"):
        held_out_sentences(LETTERS, count)


def test_each_test_voice_speaks_each_sentence_in_the_style_for_its_length(tmp_path: Path) -> None:
    models = held_out_models(tmp_path)
    found = held_out_utterances(models.voices, {"One.": "abc", "Two.": "abcdefg"})
    assert [(u.voice, u.text) for u in found] == [(v, t) for v in sorted(TEST_VOICES) for t in ("One.", "Two.")]
    assert len(set(TEST_VOICES)) == 9
    for u in found:
        assert u.phoneme_count == len(u.phonemes)
        np.testing.assert_array_equal(u.style, np.load(tmp_path / f"{u.voice}.npy")[len(u.phonemes) - 1, 0])
    assert len({u.seed for u in found}) == 18
    again = held_out_utterances(models.voices, {"Two.": "abcdefg"})
    assert [u.seed for u in again] == [u.seed for u in found if u.text == "Two."]


def test_missing_test_voice_raises(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match=r"^test voices: 'af_river' is not a voice; .*run 'nuanced weights'"):
        held_out_utterances(fake_models(tmp_path).voices, {"One.": "abc"})


def test_measures_that_were_not_requested_are_not_in_the_report(
    setup: SplitSetup, bars: dict[str, tuple[int, int]]
) -> None:
    report = setup.report(robustness=False)
    assert "robustness" not in report
    for measures in report["rows"].values():
        assert not {"identity", "f0_crepe_semitones"} & set(measures)
    assert bars == {"evaluating": (5, 5)}  # predictors


def test_second_evaluation_returns_the_same_report_and_renders_nothing(
    setup: SplitSetup, caplog: pytest.LogCaptureFixture, bars: dict[str, tuple[int, int]]
) -> None:
    caplog.set_level(logging.INFO)
    first = setup.report()
    assert _rendered(caplog) == [24, 18]  # six training voices with four sentences; nine test voices with two
    caplog.clear()
    before = setup.models.kokoro.spoken, setup.models.whisper.heard
    assert setup.report() == first
    assert (setup.models.kokoro.spoken, setup.models.whisper.heard) == before
    assert not _rendered(caplog)
    assert bars == {"evaluating": (9, 9)}  # predictors and conditions


def _rendered(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The numbers of clips that were logged as being rendered."""
    found = (re.search(r"(\d+) clips", message) for message in caplog.messages)
    return [int(match[1]) for match in found if match]


def test_report_does_not_depend_on_the_data_that_the_run_used(setup: SplitSetup) -> None:
    expected = setup.report(robustness=False)
    for overrides in (
        ["data.voices=[af_bella, am_michael, am_fenrir, af_heart]", "data.sentences=['A blue window.', 'Red door.']"],
        ["data.voices=[bf_alice]", "data.sentences=train", "data.val_sentences=validation"],
        ["data.voices=all", "data.val_voices=[bm_lewis, af_sky]"],
    ):
        assert setup.report(*overrides, robustness=False) == expected


def test_baselines_do_not_learn_from_test_voices(setup: SplitSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []

    class Recorded(predictors.StylePredictors):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            fitted = self.baselines
            learned.append((self.mean_pack, fitted.nearest.centroids, fitted.ridge.weight, fitted.ridge.bias))

    monkeypatch.setattr(test_split, "StylePredictors", Recorded)
    first = setup.report(robustness=False)["rows"]
    for name in TEST_VOICES:
        file = setup.folder / "voices" / f"{name}.npy"
        np.save(file, np.load(file)[:, :, ::-1].copy())
    setup.models.voices = VoiceBank(
        {name: setup.folder / "voices" / f"{name}.npy" for name in setup.models.voices.names}
    )
    second = setup.report(robustness=False)["rows"]
    assert all(torch.equal(a, b) for a, b in zip(*learned, strict=True))
    assert all(first[name]["style_cosine"] != second[name]["style_cosine"] for name in PREDICTORS[:-1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.voices=[af_heart, hm_omega]", "data.voices: hm_omega is a test voice"),
        ("data.val_voices=[af_river]", "data.val_voices: af_river is a test voice"),
        (f"data.sentences=['Red door.', '{TEST_SENTENCE}']", f"data.sentences: {TEST_SENTENCE!r} is a test sentence"),
        (f"data.val_sentences=['{TEST_SENTENCE}']", f"data.val_sentences: {TEST_SENTENCE!r} is a test sentence"),
        ("data.sentences=test", "data.sentences: 'Open your eyes.' is a test sentence"),
    ],
)
def test_encoder_trained_on_the_test_split_raises_before_anything_is_rendered(
    override: str, message: str, setup: SplitSetup
) -> None:
    with pytest.raises(ConfigError) as caught:
        setup.report(override)
    assert str(caught.value).startswith(message)
    assert setup.models.kokoro.spoken == 0


def test_sentences_file_is_checked_for_test_sentences_if_it_exists(
    setup: SplitSetup, caplog: pytest.LogCaptureFixture
) -> None:
    file = setup.folder / "mine.txt"
    file.write_text(f"# mine\nRed door.\n  {TEST_SENTENCE}\n")
    with pytest.raises(ConfigError, match=r"^data\.sentences: .* is a test sentence"):
        setup.report(f"data.sentences={file}")
    file.unlink()
    assert set(setup.report(f"data.sentences={file}", robustness=False)["rows"]) == set(PREDICTORS)
    assert f"data.sentences: '{file}' is missing and could not be checked for test sentences" in caplog.messages


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None) -> list[Models]:
    """Replace the fetched models and the tools of the extra by the fakes; gives the settings of each fetch."""
    settings: list[Models] = []
    models = held_out_models(tmp_path / "voices")

    def fetch(wanted: Models, device: torch.device) -> SimpleNamespace:
        settings.append(wanted)
        return models

    monkeypatch.setattr(predictors.ModelSet, "fetch", fetch)
    monkeypatch.setattr(predictors, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(test_split, "Resemblyzer", lambda source: band_embedding)
    monkeypatch.setattr(test_split, "CrepePitch", lambda: loudness_pitch)
    return settings


def test_one_call_evaluates_an_exported_encoder(exported: Path, fetched: list[Models]) -> None:
    report = evaluate_test_split(str(exported), source="hub")
    assert report["model"] == str(exported)
    assert report["sentences"] == len(report["texts"]) == 3
    assert tuple(report["rows"]) == PREDICTORS and "robustness" in report
    assert {"identity", "f0_crepe_semitones"} <= set(report["rows"]["encoder"])
    assert [(models.whisper, models.source) for models in fetched] == [(report["whisper"], "hub")]


def test_robustness_and_identity_are_optional(exported: Path, fetched: list[Models]) -> None:
    full = evaluate_test_split(exported, sentences=2, robustness=False)
    reduced = evaluate_test_split(exported, sentences=2, robustness=False, identity=False)
    assert "robustness" not in full and "robustness" not in reduced
    for name, measures in reduced["rows"].items():
        assert not {"identity", "f0_crepe_semitones"} & set(measures)
        assert measures == {measure: full["rows"][name][measure] for measure in measures}


def test_missing_extra_is_logged_by_default_and_raises_if_identity_is_required(
    exported: Path, fetched: list[Models], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(source: str) -> None:
        raise ConfigError(MISSING_EXTRA)

    monkeypatch.setattr(test_split, "Resemblyzer", missing)
    report = evaluate_test_split(exported, sentences=2, robustness=False)
    assert not {"identity", "f0_crepe_semitones"} & set(report["rows"]["encoder"])
    assert f"left out: {MISSING_EXTRA}" in caplog.messages
    with pytest.raises(ConfigError, match="Resemblyzer"):
        evaluate_test_split(exported, sentences=2, robustness=False, identity=True)
    assert len(fetched) == 1  # the second call raised before it fetched anything
