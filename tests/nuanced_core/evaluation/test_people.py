"""nuanced_core.evaluation.people and PersonPredictors with the fakes in place of all models."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import Mixes, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data import rendering
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.utterances import plan_utterances
from nuanced_core.encoder.recording import pooled_recording
from nuanced_core.errors import AudioError, ConfigError
from nuanced_core.evaluation import people as people_module
from nuanced_core.evaluation.people import PeopleEvaluation, PeopleSettings, evaluate_people
from nuanced_core.evaluation.predictors import PersonPredictors, _all_voices, _some_mixes
from nuanced_core.judges.panel import JudgePanel
from nuanced_core.judges.quality import Quality
from nuanced_core.kokoro.voices import TEST_VOICES
from nuanced_core.people.corpus import Corpus, find_people, split_of
from tests.fakes import TINY_RUN, held_out_models, random_encoder

ROWS = ["mean", "nearest", "ridge", "encoder", "best_stock"]


class PeopleSetup:
    """Evaluations of one random encoder on people whose voices are the test voices.

    The voices are rendered once; ``cache`` can be set to an empty folder.
    """

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.folder, self.run = folder, run
        self.cache = folder / "cache"
        self.models: Any = held_out_models(folder / "voices")
        self.dataset = Dataset(self.models, folder / "cache")
        self.encoder = random_encoder(self.models, run)
        self.predictors = PersonPredictors(self.encoder, run, self.dataset, mixes=10)
        self.heard: list[str] = []  # texts that a judge of words has heard, one per spoken sentence
        self.reasons: dict[str, str] = {}  # why recordings cannot be used, by file
        self.corpus = self._write_people(TEST_VOICES[:4])

    def _write_people(self, names: tuple[str, ...]) -> Corpus:
        """Write two recordings of each voice, and a third one of the first."""
        for i, name in enumerate(names):
            (self.folder / "people" / name).mkdir(parents=True)
            for take in range(3 if i == 0 else 2):
                audio = self.speech(self.models.voices.pack(name), take)
                soundfile.write(self.folder / "people" / name / f"{take}.wav", audio.numpy(), WHISPER_RATE)
        return find_people(self.folder / "people", for_training=False)

    def speech(self, pack: Tensor, take: int) -> Tensor:
        """Speak two sentences with the rows of a pack, at 16 kHz."""
        phonemes = ["abcdefgh"[take:] * 2, "hgfedcba"[take:] * 2]
        spoken = [self.dataset.say(p, pack[len(p) - 1][None]) for p in phonemes]
        return resample(torch.cat(spoken), KOKORO_RATE, WHISPER_RATE)

    def panel(self) -> JudgePanel:
        def transcribe(audio: Tensor, rate: int) -> str:
            self.heard.append("")
            return ""

        names = ("campplus", "resemblyzer")
        return JudgePanel(
            {name: self.models.speaker_encoder(name).embed for name in names},
            {name: name for name in names} | {"words": "none"},
            lambda audio, rate: torch.full((4,), 128.0),
            SimpleNamespace(transcribe=transcribe),
            lambda audio, rate: Quality(3.0, 3.0, 3.0, 3.0),
        )

    def hear(self, file: Path, speaker: str) -> Any:
        names = (file.name, f"{file.parent.name}/{file.name}")
        reasons = [self.reasons[name] for name in names if name in self.reasons]
        return reasons[0] if reasons else SimpleNamespace(file=file, rate=10.0)

    def evaluation(self, **settings: Any) -> PeopleEvaluation:
        dataset = Dataset(self.models, self.cache)
        return PeopleEvaluation(self.predictors, self.run, dataset, self.panel(), self.hear, PeopleSettings(**settings))

    def report(self, **settings: Any) -> dict[str, Any]:
        return self.evaluation(**settings).report(self.corpus)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> PeopleSetup:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "worker_count", lambda requests, models: 1)
        return PeopleSetup(tmp_path_factory.mktemp("people"), validate(RunConfig, TINY_RUN, "test"))


@pytest.fixture
def setup(shared: PeopleSetup, tmp_path: Path) -> Iterator[PeopleSetup]:
    """The shared voices with an empty cache."""
    shared.cache = tmp_path / "cache"
    yield shared
    shared.reasons.clear()


def test_report_has_all_rows_people_and_conditions(setup: PeopleSetup) -> None:
    report = setup.report()
    assert list(report["rows"]) == ROWS
    for row in ROWS[:-1]:
        measures = {"identity_campplus", "identity_resemblyzer", "f0_semitones", "f0_semitones_median", "rate_error"}
        measures |= {"word_errors", "dnsmos"}
        assert set(report["rows"][row]) == measures | {f"{name}_ci" for name in measures}
    assert report["rows"]["encoder"]["word_errors"] == 1  # nothing was heard
    assert [speaker["speaker"] for speaker in report["speakers"]] == sorted(TEST_VOICES[:4])
    first = report["speakers"][0]
    assert (first["heard"], first["compared"]) == ("af_river/0.wav", ["af_river/1.wav", "af_river/2.wav"])
    assert list(report["degraded"]) == ["snr20", "snr10", "telephone", "room"]
    assert report["marks"]["nearest"] == {"campplus": ["heard"]} and "refined" not in report["marks"]
    assert report["skipped"] == [] and len(report["texts"]) == 2
    assert report["seconds"]["encoder"] > 0
    json.dumps(report, allow_nan=False)
    assert setup.report(degraded=False)["degraded"] == {}


def test_the_second_time_nothing_is_spoken_or_judged(setup: PeopleSetup) -> None:
    first = setup.report(refine=2, limit=2)
    spoken, heard, embedded = setup.models.kokoro.spoken, len(setup.heard), setup.models.speakers.embedded
    second = setup.report(refine=2, limit=2)
    assert (setup.models.kokoro.spoken, len(setup.heard)) == (spoken, heard)
    assert setup.models.speakers.embedded == embedded
    assert first["seconds"].pop("encoder") > 0 and second["seconds"].pop("encoder") > 0
    for report in (first, second):
        for speaker in report["speakers"]:
            del speaker["seconds"]["encoder"]
    assert first == second


def test_an_interrupted_evaluation_continues(setup: PeopleSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    evaluate: Callable[..., Any] = PeopleEvaluation._evaluate

    def interrupted(self: PeopleEvaluation, person: Any, corpus: Corpus) -> Any:
        found.append(person.speaker)
        if len(found) == 3:
            raise KeyboardInterrupt
        return evaluate(self, person, corpus)

    monkeypatch.setattr(PeopleEvaluation, "_evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        setup.report(degraded=False)
    before = setup.models.kokoro.spoken
    # Two people are left, whose voices of the rows nearest, ridge and encoder speak two sentences each; the nearest
    # voice may have spoken before.
    monkeypatch.setattr(PeopleEvaluation, "_evaluate", evaluate)
    assert len(setup.report(degraded=False)["speakers"]) == 4
    assert 2 * 2 * 2 <= setup.models.kokoro.spoken - before <= 2 * 3 * 2


def test_another_encoder_is_evaluated_anew(setup: PeopleSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setup.report(degraded=False, refine=2, limit=2)
    other = copy.deepcopy(setup.encoder)
    with torch.no_grad():
        for head in other.heads.parameters():
            head.mul_(0.5)
    monkeypatch.setattr(setup.predictors, "encoder", other)
    after = setup.report(degraded=False, refine=2, limit=2)
    for row in ("mean", "nearest", "ridge"):
        assert before["rows"][row] == after["rows"][row]
    for row in ("encoder", "refined"):
        assert before["rows"][row]["identity_campplus"] != after["rows"][row]["identity_campplus"]


def test_refinement_and_inversion_are_rows_with_steps_and_seconds(
    setup: PeopleSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    inversion = people_module.INVERSION.model_copy(update={"steps": 2})
    monkeypatch.setattr(people_module, "INVERSION", inversion)
    report = setup.report(degraded=False, refine=3, inversion=True, limit=2)
    assert list(report["rows"]) == [*ROWS[:4], "refined", "inversion", "best_stock"]
    assert report["marks"]["refined"] == {"campplus": ["trained"], "resemblyzer": ["trained"]}
    assert set(report["seconds"]) == {"encoder", "refined", "inversion"}
    for speaker in report["speakers"]:
        assert speaker["steps"]["refined"]["taken"] == 3 and speaker["steps"]["inversion"]["taken"] == 2
        assert speaker["steps"]["refined"]["kept"] <= 3
        assert speaker["voices"]["inversion"] in setup.predictors.names
    assert set(report["above_best_stock"]) == {"encoder", "refined"}


def test_recordings_that_cannot_be_used_are_skipped_and_named(
    setup: PeopleSetup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.reasons["af_river/0.wav"] = "is silent"
    report = setup.report(degraded=False)
    assert report["skipped"] == [{"speaker": "af_river", "file": "af_river/0.wav", "reason": "is silent"}]
    assert report["speakers"][0]["heard"] == "af_river/1.wav" and len(report["speakers"]) == 4
    assert "1 recordings cannot be used" in caplog.text and "af_river/0.wav: is silent" in caplog.text
    setup.reasons |= {"0.wav": "is silent", "1.wav": "is silent", "2.wav": "holds two people"}
    with pytest.raises(AudioError, match=r"only 0 people can be used.* at least 2; the first left out: af_river/0.wav"):
        setup.report(degraded=False)


def test_a_person_whose_recording_no_judge_can_hear_is_left_out(
    setup: PeopleSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = JudgePanel.hear
    calls: list[int] = []

    def fails_at_first(self: JudgePanel, audio: Tensor, rate: int) -> Any:
        calls.append(len(audio))
        if len(calls) == 2:
            raise AudioError("a recording of 2.00 s is silent")
        return hear(self, audio, rate)

    monkeypatch.setattr(JudgePanel, "hear", fails_at_first)
    report = setup.report(degraded=False)
    assert [one["speaker"] for one in report["speakers"]] == sorted(TEST_VOICES[:4])[1:]
    (skipped,) = report["skipped"]
    assert (skipped["file"], skipped["reason"]) == ("af_river/1.wav", "a recording of 2.00 s is silent")


def test_limit_takes_the_first_people_that_can_be_used(setup: PeopleSetup) -> None:
    names = sorted(TEST_VOICES[:4])
    assert [one["speaker"] for one in setup.report(degraded=False, limit=2)["speakers"]] == names[:2]
    setup.reasons |= {f"{names[0]}/{take}.wav": "is silent" for take in range(3)}
    assert [one["speaker"] for one in setup.report(degraded=False, limit=2)["speakers"]] == names[1:3]


def test_samples_are_written_for_each_person(setup: PeopleSetup, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    report = setup.report(degraded=False, limit=2, refine=1, samples=folder)
    names = [speaker["speaker"] for speaker in report["speakers"]]
    kinds = ("heard", "mean", "nearest", "encoder", "refined")
    assert {path.name for path in folder.iterdir()} == {f"{name}_{kind}.wav" for name in names for kind in kinds}
    audio, rate = soundfile.read(folder / f"{names[0]}_encoder.wav", dtype="float32")
    evaluation = setup.evaluation()
    recording, _ = soundfile.read(setup.folder / "people" / names[0] / "0.wav", dtype="float32")
    spoken = torch.cat(evaluation._speak(setup.predictors.encoded(torch.from_numpy(recording))))
    assert rate == KOKORO_RATE
    assert torch.from_numpy(audio).allclose(spoken / max(1.0, float(spoken.abs().max())), atol=1e-4)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_nearest_voice_has_the_most_similar_mean_embedding(setup: PeopleSetup) -> None:
    predictors, bank = setup.predictors, setup.models.voices
    assert predictors.names == bank.training_voices("all", setup.run.data.val_voices)
    assert not set(predictors.names) & {*TEST_VOICES, *setup.run.data.val_voices}
    embed = setup.models.speaker_encoder("campplus").embed
    planned = plan_utterances(_all_voices(setup.run), Mixes(), bank, setup.models.phonemizer).train
    clips = Dataset(setup.models, setup.cache).clips(planned)
    means = [
        torch.stack([embed(c.audio, KOKORO_RATE) for c in clips if c.utterance.voice == name]).mean(dim=0)
        for name in predictors.names
    ]
    recording = embed(setup.speech(bank.pack("am_onyx"), 0), WHISPER_RATE)
    similar = [float(torch.nn.functional.cosine_similarity(recording, mean, dim=0)) for mean in means]
    assert predictors.nearest(recording) == predictors.names[similar.index(max(similar))]
    for name, mean in zip(predictors.names, means, strict=True):
        assert predictors.nearest(mean) == name
        expected = torch.stack([bank.style(name, n) for n in (3, 600)])
        assert torch.equal(predictors.stock(name)(torch.tensor([3, 600])), expected)


def test_nearest_voice_in_pitch_is_within_5_semitones_if_there_is_one(
    setup: PeopleSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictors = setup.predictors
    monkeypatch.setattr(predictors, "_pitch", torch.arange(len(predictors.names)) + 6.0)
    for i, name in enumerate(predictors.names):
        for near in (-0.4, 0.4):
            assert predictors.nearest_in_pitch(predictors._embeddings[0], 6 + i + near) == name
    for none_near in (3.0, 6.45, float("nan")):
        assert predictors.nearest_in_pitch(predictors._embeddings[1], none_near) == predictors.names[1]


def test_ridge_is_nearer_to_the_voices_that_it_was_fitted_to_than_the_mean_voice(setup: PeopleSetup) -> None:
    predictors, counts = setup.predictors, torch.tensor([8])
    embed = setup.models.speaker_encoder("campplus").embed
    true = torch.cat([predictors.stock(name)(counts) for name in predictors.names])
    speech = [setup.speech(setup.models.voices.pack(name), 0) for name in predictors.names]
    predicted = torch.cat([predictors.by_ridge(embed(audio, WHISPER_RATE))(counts) for audio in speech])
    assert (predicted - true).norm() < 0.95 * (predictors.mean(counts) - true).norm()


def test_synthetic_voices_are_those_of_the_run_or_steps() -> None:
    own = Mixes(blends=300, steps=100, beyond=0.3, sentences=2)
    found = _some_mixes(own, 40, 9)
    assert (found.blends, found.steps, found.beyond, found.sentences) == (30, 10, 0.3, 1)
    few = _some_mixes(Mixes(swaps=5), 40, 9)
    assert (few.swaps, few.steps) == (5, 0)
    assert (_some_mixes(Mixes(), 40, 9).steps, _some_mixes(Mixes(), 40, 9).members) == (40, 3)
    assert _some_mixes(own, 40, 2).members == _some_mixes(Mixes(), 40, 2).members == 2


def test_evaluate_people_checks_what_it_is_given_before_it_loads_models(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people_module, "open_dataset", lambda *_: pytest.fail("models are loaded"))
    people = tmp_path / "people"
    with pytest.raises(AudioError, match=r"people: .*: no such folder"):
        evaluate_people(exported, people)
    train = [name for name in (f"speaker{i}" for i in range(60)) if split_of(name) == "train"][:5]
    for name in train:
        (people / name).mkdir(parents=True)
        soundfile.write(people / name / "a.wav", torch.rand(WHISPER_RATE).numpy(), WHISPER_RATE)
    with pytest.raises(AudioError, match=r"0 of its 5 speakers are in the split test.*2 are needed; add speakers"):
        evaluate_people(exported, people)
    with pytest.raises(pytest.fail.Exception, match="models are loaded"):  # all of them are enough
        evaluate_people(exported, people, PeopleSettings("all"))
    with pytest.raises(ConfigError, match=r"limit: 1: .*take at least 2"):
        evaluate_people(exported, people, PeopleSettings(limit=1))
    for taken in (people, exported / "config.json"):
        with pytest.raises(ConfigError, match=r"samples: .*exists and is not an empty folder"):
            evaluate_people(exported, people, PeopleSettings(samples=taken))


def test_an_encoder_with_speaker_features_hears_people_too(setup: PeopleSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    run = validate(RunConfig, {**TINY_RUN, "features": {"speaker": "campplus", "pitch": True}}, "test")
    encoder = random_encoder(setup.models, run)
    monkeypatch.setattr(setup.predictors, "encoder", encoder)
    report = setup.report(degraded=False, limit=2)
    assert report["marks"]["encoder"] == {"campplus": ["heard"]}
    audio = setup.speech(setup.models.voices.pack("af_river"), 0)
    expected = encoder.styles(pooled_recording(encoder, setup.models, audio), torch.tensor([8]))
    assert torch.equal(setup.predictors.encoded(audio)(torch.tensor([8])), expected)
