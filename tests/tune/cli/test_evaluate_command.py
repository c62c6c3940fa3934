"""The command `nuanced evaluate` from end to end with the fakes: its output for scripts and for people, and its
errors."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from nuanced_core.config.settings import Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data import rendering
from nuanced_core.errors import ConfigError
from nuanced_core.evaluation import predictors, recordings, test_split
from nuanced_core.export.folder import export_encoder
from nuanced_core.text.sentences import load_sentences
from nuanced_core.training.run import BEST, start_run
from tests.fakes import band_embedding, held_out_models, loudness_pitch
from tune.cli.app import main

PREDICTORS = ["mean", "nearest", "ridge", "encoder", "oracle"]
RUN = {
    "models": {"whisper": "base"},
    "data": {
        "voices": ["af_heart", "am_fenrir"],
        "val_voices": ["af_sky"],
        "sentences": ["Red door.", "A blue window."],
        "val_sentences": ["No rain.", "Green hills."],
    },
    "augment": {"copies": 0},
    "encoder": {"width": 8, "depth": 1},
    "loss": {"stft": 0},
}
MEASURES = {
    "stft", "style_cosine", "timbre_cosine", "prosody_cosine", "skill", "f0_semitones", "f0_spread_correlation",
    "energy_correlation", "duration_error",
}  # fmt: skip
EXTRA_MEASURES = {"identity", "f0_crepe_semitones"}
CONDITIONS = ["snr20", "snr10", "telephone", "room"]
MISSING_EXTRA = "speaker identity needs Resemblyzer; pip install 'nuanced-speech[eval]'"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Fakes, an encoder that they trained for one step, its export, recordings, and the cache of all tests."""
    folder = tmp_path_factory.mktemp("shared")
    models = held_out_models(folder / "voices")
    run = start_run(
        validate(RunConfig, RUN, "test"),
        folder / "run",
        lambda *reported: None,
        models,  # type: ignore[arg-type]
        folder / "cache",
    )
    run.train_step()
    run.best_loss = 1.0
    run.save(folder / "run" / BEST)
    clips = folder / "clips"
    clips.mkdir()
    for seed in (1, 2):
        time = np.arange(64_000) / 16_000
        tones = np.sin(2 * np.pi * 110 * seed * np.arange(1, 9)[:, None] * time)
        soundfile.write(clips / f"{seed}.wav", np.random.default_rng(seed).uniform(0, 0.1, 8) @ tones, 16_000)
    return SimpleNamespace(
        folder=folder, models=models, clips=clips, model=export_encoder(folder / "run" / BEST, folder / "model")
    )


@pytest.fixture(autouse=True)
def fetched(shared: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Models]:
    """Replace the fetched models and the tools of the extra by the fakes; gives the settings of each fetch."""
    settings: list[Models] = []

    def fetch(wanted: Models, device: object) -> SimpleNamespace:
        settings.append(wanted)
        return shared.models  # type: ignore[no-any-return]

    monkeypatch.setattr("nuanced_core.data.model_set.ModelSet.fetch", fetch)
    monkeypatch.setattr(predictors, "cache_dir", lambda: shared.folder / "cache")
    monkeypatch.setattr(rendering, "worker_count", lambda requests, models: 1)
    for module in (test_split, recordings):
        monkeypatch.setattr(module, "Resemblyzer", lambda source: band_embedding)
    monkeypatch.setattr(test_split, "CrepePitch", lambda: loudness_pitch)
    monkeypatch.chdir(tmp_path)
    return settings


def _report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_json_is_the_only_output_on_stdout_and_is_complete(
    shared: SimpleNamespace, capsys: pytest.CaptureFixture[str], fetched: list[Models]
) -> None:
    assert main(["evaluate", str(shared.model), "--json", "--sentences", "2", "--source", "hub"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(report["rows"]) == PREDICTORS
    for row in report["rows"].values():
        assert set(row) == {f"{name}{end}" for name in MEASURES | EXTRA_MEASURES for end in ("", "_ci")}
        assert all(len(row[f"{name}_ci"]) == 2 for name in MEASURES | EXTRA_MEASURES)
    assert report["model"] == str(shared.model)
    assert len(report["voices"]) == 9 and report["sentences"] == 2
    assert list(report["robustness"]) == CONDITIONS
    assert [(models.whisper, models.source) for models in fetched] == [("base", "hub")]
    assert (report["rows"]["mean"]["skill"], report["rows"]["oracle"]["skill"]) == (0, 1)


def test_default_is_three_sentences_and_the_default_model(
    shared: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "default").symlink_to(shared.model)
    report = _report(capsys, "--no-degraded", "--no-identity")
    assert report["model"] == "models/default" and report["sentences"] == len(report["texts"]) == 3
    assert set(report["texts"]) <= set(load_sentences("test"))


def test_no_degraded_and_no_identity_leave_these_measures_out(
    shared: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report(capsys, shared.model, "--sentences", 2, "--no-degraded", "--no-identity")
    assert "robustness" not in report
    assert all(set(row) == {f"{n}{end}" for n in MEASURES for end in ("", "_ci")} for row in report["rows"].values())


def test_missing_extra_is_a_warning_and_with_identity_an_error(
    shared: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(source: str) -> None:
        raise ConfigError(MISSING_EXTRA)

    monkeypatch.setattr(test_split, "Resemblyzer", missing)
    arguments = ["evaluate", str(shared.model), "--sentences", "2", "--no-degraded", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert not EXTRA_MEASURES & set(json.loads(out)["rows"]["encoder"])
    assert f"left out: {MISSING_EXTRA}" in " ".join(err.split())
    assert main([*arguments, "--identity"]) == 2
    assert capsys.readouterr() == ("", f"nuanced: error: {MISSING_EXTRA}\n")


def test_clips_evaluates_recordings_instead_of_the_test_split(
    shared: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report(capsys, shared.model, "--clips", shared.clips)
    assert list(report["rows"]) == PREDICTORS[:-1]  # no oracle: a person's true style is unknown
    assert all(set(row) == {"identity", "identity_ci"} for row in report["rows"].values())
    assert [clip["file"] for clip in report["clips"]] == ["1.wav", "2.wav"]
    for clip in report["clips"]:
        assert set(clip["identity"]) == set(PREDICTORS[:-1]) and clip["distance"] > 0


def test_bad_recordings_are_listed_and_the_others_evaluated(
    shared: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    clips = _recording(tmp_path / "clips", np.zeros(64_000))
    shutil.copy(shared.clips / "1.wav", clips)
    (clips / "._1.wav").write_bytes(b"resource fork")
    (clips / "take.wav").mkdir()
    (clips / "b.M4A").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(50))
    report = _report(capsys, shared.model, "--clips", clips)
    assert [clip["file"] for clip in report["clips"]] == ["1.wav"]
    assert report["skipped"][0] == {"file": "a.wav", "reason": "is silent; record it again"}
    assert [clip["file"] for clip in report["skipped"]] == ["a.wav", "b.M4A"]
    assert main(["evaluate", str(shared.model), "--clips", str(clips)]) == 0
    out, err = capsys.readouterr()
    assert "skipped: 2 of 3 recordings" in out and "is silent; record it again" in out and "b.M4A" in out
    assert "2 of 3 recordings were skipped; the report says why" in err
    (clips / "1.wav").unlink()
    assert main(["evaluate", str(shared.model), "--clips", str(clips)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"nuanced: error: none of 2 recordings can be used; the first: {clips}/a.wav: is silent" in err
    assert "b.M4A" in err


def _export_with(shared: SimpleNamespace, folder: Path, **data: object) -> Path:
    """Copy the export, with other data in its run's settings."""
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((shared.model / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["run"]["data"] |= data
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _recording(folder: Path, samples: np.ndarray) -> Path:
    folder.mkdir()
    soundfile.write(folder / "a.wav", samples, 16_000)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere/config.json: no such file; give a folder that 'nuanced export' wrote"),
        ([], "models/default/config.json: no such file"),
        (["{empty}"], "{empty}/config.json: no such file"),
        (["{model}/README.md"], "{model}/README.md/config.json: no such file"),
        (["{model}", "--sentences", "1"], "sentences: 1: take 2 to 40"),
        (["{model}", "--sentences", "0"], "sentences: 0: take 2 to 40"),
        (["{model}", "--sentences", "41"], "sentences: 41: take 2 to 40"),
        (["{model}", "--clips", "nowhere"], "nowhere: no such folder; name one that holds recordings"),
        (["{model}", "--clips", "{empty}"], "{empty}: holds no sound file (.wav, .wave, .flac"),
        (["{model}", "--clips", "{short}"], "{short}/a.wav: 1.0 s is too short to identify a voice; record at least 3"),
        (["{model}", "--clips", "{silent}"], "{silent}/a.wav: is silent; record it again"),
        (["{test_voice}"], "data.voices: hm_omega is a test voice"),
        (["{test_sentence}"], "data.sentences: 'Open your eyes.' is a test sentence"),
        (["{broken}"], "{broken}/config.json: not a StyleEncoder's configuration"),
    ],
)
def test_user_error_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], message: str, shared: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "model.safetensors").touch()
    places = {
        "model": shared.model,
        "empty": tmp_path / "empty",
        "broken": tmp_path / "broken",
        "short": _recording(tmp_path / "short", 0.1 * np.sin(np.arange(16_000) / 20)),
        "silent": _recording(tmp_path / "silent", np.zeros(64_000)),
        "test_voice": _export_with(shared, tmp_path / "test_voice", voices=["af_heart", "hm_omega"]),
        "test_sentence": _export_with(shared, tmp_path / "test_sentence", sentences=["Red door.", "Open your eyes."]),
    }
    assert main(["evaluate", *(argument.format(**places) for argument in arguments), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *progress, last = err.splitlines()
    assert last.startswith(f"nuanced: error: {message.format(**places)}")
    assert not [line for line in progress if "error" in line.lower() or "Traceback" in line]


@pytest.mark.parametrize("arguments", [["a", "b"], ["a", "--sentences", "two"], ["a", "--clips"], ["a", "--jsn"]])
def test_invalid_command_line_exits_with_2(arguments: list[str]) -> None:
    assert main(["evaluate", *arguments]) == 2


def test_tables_for_people_have_the_numbers_of_the_json(
    shared: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    report = _report(capsys, shared.model, "--sentences", 2)
    assert main(["evaluate", str(shared.model), "--sentences", "2"]) == 0
    out = capsys.readouterr().out
    for text in (*CONDITIONS, "speaker identity", "mel-STFT loss", "F0 error, semitones"):
        assert text in out
    assert f"{report['rows']['encoder']['stft']:.3f}" in out
    assert main(["evaluate", str(shared.model), "--clips", str(shared.clips)]) == 0
    out = capsys.readouterr().out
    assert "1.wav" in out and "2.wav" in out and "all" in out


def test_card_writes_the_printed_report_once_and_keeps_the_rest_of_the_card(
    shared: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(shared.model, model)
    before = (model / "README.md").read_text()
    for _ in range(2):
        capsys.readouterr()
        assert main(["evaluate", str(model), "--no-identity", "--no-degraded", "--json", "--card"]) == 0
    report = json.loads((model / "evaluation.json").read_text())
    assert report == json.loads(capsys.readouterr().out)
    card = (model / "README.md").read_text()
    assert card.startswith(before.rstrip()) and card.count("## On the test split") == 1
    cosine = report["rows"]["encoder"]["style_cosine"]
    line = next(line for line in card.splitlines() if line.startswith("| style cosine"))
    assert f"| {cosine:.3f} ±" in line
    assert main(["evaluate", str(model), "--clips", str(shared.clips), "--card"]) == 2
