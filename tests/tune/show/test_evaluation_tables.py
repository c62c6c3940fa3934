"""tune.show.evaluation_tables and `nuanced evaluate`: what is printed for scripts and for people, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import Dataset
from nuanced_core.encoder.export import export_encoder
from nuanced_core.errors import ConfigError
from nuanced_core.evaluation import predictors as style_rows
from nuanced_core.text.sentences import load_sentences
from nuanced_core.training.run import BEST, Run
from tests.fakes import band_embedding, held_out_models, loudness_pitch
from tune.cli.app import main
from tune.show import evaluation_tables as evaluation
from tune.show.evaluation_tables import tables

ROWS = ["mean", "nearest", "ridge", "encoder", "oracle"]
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
EXTRA = {"identity", "f0_crepe_semitones"}
DEGRADED = ["snr20", "snr10", "telephone", "room"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Fakes and the export of an encoder that they trained for a step, for all tests; the cache is shared too."""
    folder = tmp_path_factory.mktemp("house")
    models = held_out_models(folder / "voices")
    run = Run(validate(RunConfig, RUN, "test"), Dataset(models, folder / "cache"), folder / "run", lambda *_: None)  # type: ignore[arg-type]
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
def fetched(house: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The fakes are what is fetched; gives the settings by which it was."""
    asked: list[Any] = []

    def fetch(settings: Any, device: Any, say: Any) -> SimpleNamespace:
        asked.append(settings)
        say("fetched the models")
        return house.models

    monkeypatch.setattr(evaluation.ModelSet, "fetch", fetch)
    monkeypatch.setattr(evaluation, "cache_dir", lambda: house.folder / "cache")
    monkeypatch.setattr(style_rows, "worker_count", lambda orders, models: 1)
    monkeypatch.setattr(evaluation, "SpeakerEncoder", lambda: band_embedding)
    monkeypatch.setattr(evaluation, "CrepePitch", lambda: loudness_pitch)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ConfigError("speaker identity needs Resemblyzer; pip install 'nuanced-speech[eval]'")

    monkeypatch.setattr(evaluation, "SpeakerEncoder", missing)


def _report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_json_alone_is_on_stdout_and_has_every_row_measure_and_interval(
    house: SimpleNamespace, capsys: pytest.CaptureFixture[str], fetched: list[Any]
) -> None:
    assert main(["evaluate", str(house.model), "--json", "--sentences", "2", "--source", "hub"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(report["rows"]) == ROWS
    for row in report["rows"].values():
        assert set(row) == {f"{name}{end}" for name in MEASURES | EXTRA for end in ("", "_ci")}
        assert all(len(row[f"{name}_ci"]) == 2 for name in MEASURES | EXTRA)
    assert report["model"] == str(house.model)
    assert len(report["voices"]) == 9 and report["sentences"] == 2
    assert list(report["robustness"]) == DEGRADED
    assert "fetched the models" in err
    assert [(models.whisper, models.source) for models in fetched] == [("base", "hub")]
    assert (report["rows"]["mean"]["skill"], report["rows"]["oracle"]["skill"]) == (0, 1)


def test_three_sentences_of_the_default_model_are_spoken_if_nothing_is_said(
    house: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "default").symlink_to(house.model)
    report = _report(capsys, "--no-degraded", "--no-identity")
    assert report["model"] == "models/default" and report["sentences"] == len(report["texts"]) == 3
    assert set(report["texts"]) <= set(load_sentences("test"))


def test_degraded_and_identity_are_left_out_on_request(
    house: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report(capsys, house.model, "--sentences", 2, "--no-degraded", "--no-identity")
    assert "robustness" not in report
    assert all(set(row) == {f"{n}{end}" for n in MEASURES for end in ("", "_ci")} for row in report["rows"].values())
    whole = _report(capsys, house.model, "--sentences", 2)["rows"]
    for name, row in report["rows"].items():
        assert row == {measure: whole[name][measure] for measure in row}


@pytest.mark.usefixtures("without_extra")
def test_without_the_extra_its_measures_are_left_out_and_said_to_be(
    house: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(house.model), "--sentences", "2", "--no-degraded", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert not EXTRA & set(json.loads(out)["rows"]["encoder"])
    assert "left out: speaker identity needs Resemblyzer; pip install 'nuanced-speech[eval]'" in err
    assert main([*arguments, "--identity"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "nuanced: error: speaker identity needs Resemblyzer; pip install 'nuanced-speech[eval]'\n",
    )


def test_recordings_are_heard_instead_of_the_test_split(
    house: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _report(capsys, house.model, "--clips", house.clips)
    assert list(report["rows"]) == ROWS[:-1]  # nobody knows a person's style
    assert all(set(row) == {"identity", "identity_ci"} for row in report["rows"].values())
    assert [clip["file"] for clip in report["clips"]] == ["1.wav", "2.wav"]
    for clip in report["clips"]:
        assert set(clip["identity"]) == set(ROWS[:-1]) and clip["distance"] > 0


def _seen(house: SimpleNamespace, folder: Path, **data: object) -> Path:
    """The export, as of a run with other data."""
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((house.model / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["run"]["data"] |= data
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _recording(folder: Path, samples: np.ndarray) -> Path:
    folder.mkdir()
    soundfile.write(folder / "a.wav", samples, 16_000)
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere/config.json: no such file; give a folder that 'nuanced export' wrote"),
        ([], "models/default/config.json: no such file"),
        (["{empty}"], "{empty}/config.json: no such file"),
        (["{model}/README.md"], "{model}/README.md/config.json: no such file"),
        (["{model}", "--sentences", "1"], "sentences: 1: take 2 to 40"),
        (["{model}", "--sentences", "0"], "sentences: 0: take 2 to 40"),
        (["{model}", "--sentences", "41"], "sentences: 41: take 2 to 40"),
        (["{model}", "--clips", "nowhere"], "nowhere: no such folder; name one that holds recordings"),
        (["{model}", "--clips", "{empty}"], "{empty}: holds no .wav, .flac, .ogg, .mp3 file; put recordings in it"),
        (["{model}", "--clips", "{short}"], "{short}/a.wav: 1.0 s is too short to tell a voice; at least 3 s"),
        (["{model}", "--clips", "{silent}"], "{silent}/a.wav: is silent; record it again"),
        (["{test_voice}"], "data.voices: hm_omega is a test voice too; a held-out voice must not be trained on"),
        (["{test_sentence}"], "data.sentences: 'Open your eyes.' is a test sentence"),
        (["{broken}"], "{broken}/config.json: not a StyleEncoder's configuration"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], told: str, house: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "model.safetensors").touch()
    places = {
        "model": house.model,
        "empty": tmp_path / "empty",
        "broken": tmp_path / "broken",
        "short": _recording(tmp_path / "short", 0.1 * np.sin(np.arange(16_000) / 20)),
        "silent": _recording(tmp_path / "silent", np.zeros(64_000)),
        "test_voice": _seen(house, tmp_path / "test_voice", voices=["af_heart", "hm_omega"]),
        "test_sentence": _seen(house, tmp_path / "test_sentence", sentences=["Red door.", "Open your eyes."]),
    }
    assert main(["evaluate", *(argument.format(**places) for argument in arguments), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *progress, last = err.splitlines()
    assert last.startswith(f"nuanced: error: {told.format(**places)}")
    assert not [line for line in progress if "error" in line.lower() or "Traceback" in line]


@pytest.mark.parametrize("arguments", [["a", "b"], ["a", "--sentences", "two"], ["a", "--clips"], ["a", "--jsn"]])
def test_a_command_line_that_cannot_be_parsed_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments])
    assert caught.value.code == 2


def _printed(report: dict[str, Any]) -> list[str]:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(*tables(report), sep="\n")
    return console.export_text().splitlines()


def _cells(lines: list[str], name: str) -> list[str]:
    """Of the line that starts with ``name``."""
    (line,) = [line for line in lines if line.strip("│ ┃").startswith(name)]
    return [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")][1:]


def _row(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    measures = ("stft", "style_cosine", "skill", "f0_semitones", "duration_error", "energy_correlation")
    return {key: v for name in measures for key, v in ((name, value), (f"{name}_ci", [low, high]))}


def test_the_table_has_each_value_with_half_its_interval_in_its_unit() -> None:
    rows = {name: _row(0.12345 + i, 0.1 + i, 0.2 + i) for i, name in enumerate(ROWS)}
    rows["oracle"] |= {"skill": 1.0, "skill_ci": [None, None], "energy_correlation": None}
    report = {"model": "models/a", "voices": ["x"] * 9, "sentences": 3, "rows": rows}
    lines = _printed(report)
    assert lines[0].strip() == "models/a: 9 test voices, 3 sentences each"
    (header,) = [line for line in lines if "oracle" in line]
    assert header.replace("┃", " ").split() == ROWS
    assert _cells(lines, "mel-STFT loss")[:2] == ["0.123 ±0.050", "1.123 ±0.050"]
    assert _cells(lines, "skill")[4] == "1.000"
    assert _cells(lines, "energy")[4] == "–"
    assert _cells(lines, "length error, %")[0] == "12.3 ±5.0"
    assert not [line for line in lines if "speaker identity" in line or "degraded" in line]


def test_the_table_of_degraded_clips_tells_what_is_lost() -> None:
    degraded = {"style_cosine": 0.75, "style_cosine_ci": [0.7, 0.8], "loss": 0.05, "loss_ci": [0.04, 0.08]}
    report = {
        "model": "a", "voices": [], "sentences": 2, "rows": {name: _row(0.1, 0, 1) for name in ROWS},
        "robustness": {kind: dict.fromkeys(("nearest", "ridge", "encoder"), degraded) for kind in DEGRADED},
    }  # fmt: skip
    for kind in DEGRADED:
        assert _cells(_printed(report), kind) == ["0.750 ±0.050, lost 0.050 ±0.020"] * 3


def test_the_table_of_recordings_has_a_line_for_each_and_one_for_all() -> None:
    identity = {"mean": 0.0, "nearest": -0.125, "ridge": None, "encoder": 0.5}
    report = {
        "model": "a",
        "rows": {name: {"identity": 0.25, "identity_ci": [0.125, 0.375]} for name in ROWS[:-1]},
        "clips": [{"file": f"{n}.wav", "distance": 3.14159 * n, "identity": identity} for n in (1, 2)],
    }
    lines = _printed(report)
    assert _cells(lines, "1.wav") == ["3.1", "0.00", "-0.12", "–", "0.50"]
    assert _cells(lines, "2.wav")[0] == "6.3"
    assert _cells(lines, "all") == ["", *["0.25 ±0.12"] * 4]


def test_people_get_the_tables_of_the_same_numbers(
    house: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    report = _report(capsys, house.model, "--sentences", 2)
    assert main(["evaluate", str(house.model), "--sentences", "2"]) == 0
    out = capsys.readouterr().out
    for kind in (*DEGRADED, "speaker identity", "mel-STFT loss", "F0 error, semitones"):
        assert kind in out
    assert f"{report['rows']['encoder']['stft']:.3f}" in out
    assert main(["evaluate", str(house.model), "--clips", str(house.clips)]) == 0
    out = capsys.readouterr().out
    assert "1.wav" in out and "2.wav" in out and "all" in out


def test_the_card_gets_the_results_once_and_keeps_the_rest(
    house: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(house.model, model)
    before = (model / "README.md").read_text()
    for _ in range(2):
        assert main(["evaluate", str(model), "--no-identity", "--no-degraded", "--json", "--card"]) == 0
    report = json.loads((model / "evaluation.json").read_text())
    assert report == json.loads(capsys.readouterr().out.partition("\n}\n")[0] + "\n}")
    card = (model / "README.md").read_text()
    assert card.startswith(before.rstrip()) and card.count("## On the test split") == 1
    cosine = report["rows"]["encoder"]["style_cosine"]
    line = next(line for line in card.splitlines() if line.startswith("| style cosine"))
    assert f"| {cosine:.3f} ±" in line
    assert main(["evaluate", str(model), "--clips", str(house.clips), "--card"]) == 2
