"""tune.show.status and tune.show.report: the shape that scripts rely on, and the lines that people read."""

import os
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.tune.search.ledgers import ledger, result
from tune.config.sweep_settings import SweepSettings
from tune.search.study import open_study
from tune.show.report import final_lines, short_params, status_lines
from tune.show.status import mark, status, study_status


def swept(folder: Path) -> optuna.Study:
    """Complete, failed, running and complete again, the last the best."""
    book = ledger(folder, budget=4)
    for _ in range(4):
        book.ask()
    book.report(0, result(1, 0.9))
    book.end(0)
    book.fail(1, "no\nmemory")
    book.end(1)
    book.report(2, result(1, 0.1))
    scores = {"val/stft": 0.25, "val/style": 0.15, "baseline/loss": 1.0, "oracle/loss": 0.05}
    book.report(3, {**result(1, 0.4), **scores})
    book.end(3)
    return open_study(folder, SweepSettings())


def test_status_has_exactly_the_shape_that_is_promised(tmp_path: Path) -> None:
    study = swept(tmp_path)
    params = [trial.user_attrs["params"] for trial in study.trials]
    mark(study, "running")
    trials = [
        {"number": 0, "state": "complete", "value": 0.9, "epochs": 1, "params": params[0], "error": None},
        {"number": 1, "state": "failed", "value": None, "epochs": 0, "params": params[1], "error": "no memory"},
        {"number": 2, "state": "running", "value": 0.1, "epochs": 1, "params": params[2], "error": None},
        {"number": 3, "state": "complete", "value": 0.4, "epochs": 1, "params": params[3], "error": None},
    ]
    assert status(tmp_path) == {
        "state": "running",
        "trials": [{**trial, "retry_of": None, "repeat_of": None} for trial in trials],
        "best": {"number": 3, "value": 0.4, "skill": -0.4, "params": params[3], "seeds": None},
        "pareto": [],
    }


def test_best_is_null_until_a_trial_is_complete(tmp_path: Path) -> None:
    ledger(tmp_path).ask()
    assert status(tmp_path)["best"] is None
    assert status(tmp_path)["trials"][0]["value"] is None


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_the_state_is_what_the_driver_recorded(tmp_path: Path, state: str) -> None:
    mark(swept(tmp_path), state)
    assert status(tmp_path)["state"] == state


def test_a_sweep_whose_driver_died_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: dead)
        mark(swept(tmp_path), "running")
    assert status(tmp_path)["state"] == "interrupted"


def test_the_report_compares_the_best_trial_with_the_baselines(tmp_path: Path) -> None:
    study = swept(tmp_path)
    rate = study.trials[3].user_attrs["params"]["train.learning_rate"]
    lines = final_lines(tmp_path, study, study_status(study))
    assert lines[0] == "best trial: 3 (2 complete, 1 failed, 1 interrupted)"
    assert f"  train.learning_rate = {rate:.4g}" in lines
    rows = [line.split() for line in lines]
    assert ["loss", "stft", "style"] in rows
    assert ["style", "encoder", "0.4000", "0.2500", "0.1500"] in rows
    assert ["mean", "voice", "1.0000"] in rows
    assert ["oracle", "0.0500"] in rows
    assert lines[-3:] == [
        f"curves: nuanced board {tmp_path}",
        f"report: nuanced report {tmp_path}",
        f"export: nuanced export {tmp_path} -o models/{tmp_path.name}",
    ]


def test_the_commands_of_the_report_are_quoted_for_the_shell(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    folder.mkdir()
    study = swept(folder)
    curves, report, export = final_lines(folder, study, study_status(study))[-3:]
    assert shlex.split(curves) == ["curves:", "nuanced", "board", str(folder)]
    assert shlex.split(report) == ["report:", "nuanced", "report", str(folder)]
    assert shlex.split(export) == ["export:", "nuanced", "export", str(folder), "-o", "models/it's mine"]


def test_the_report_without_a_complete_trial_shows_the_first_error(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for number, reason in enumerate(("first", "second")):
        book.ask()
        book.fail(number, reason)
        book.end(number)
    study = open_study(tmp_path, SweepSettings())
    assert final_lines(tmp_path, study, study_status(study)) == [
        "no trial is complete (2 failed); the first error: first"
    ]


def test_the_table_has_a_line_for_each_trial_and_marks_the_best(tmp_path: Path) -> None:
    mark(swept(tmp_path), "interrupted")
    lines = status_lines(tmp_path)
    assert lines[0].endswith("interrupted; 2 complete, 1 failed, 1 interrupted")
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["0", "complete"],
        ["1", "failed"],
        ["2", "interrupted"],
        ["3*", "complete"],
    ]
    assert "(no memory)" in lines[3]


@pytest.mark.parametrize(
    ("params", "short"),
    [
        ({"encoder.width": 64, "train.learning_rate": 0.00123456}, "width=64 learning_rate=0.001235"),
        ({"loss.stft": 1.0, "other.stft": 2}, "loss.stft=1 other.stft=2"),
        ({}, ""),
    ],
)
def test_short_params_are_unambiguous(params: dict[str, Any], short: str) -> None:
    assert short_params(params) == short


def test_the_report_compares_people_and_says_how_far_the_objective_is_certain(tmp_path: Path) -> None:
    people = {
        "val/identity": 0.51,
        "val/pitch": 0.93,
        "val/noise": 0.0312,
        "baseline/identity": -0.04,
        "val/stft": 0.25,
    }
    for name, more in (("people", people), ("voices", {"val/stft": 0.25, "val/noise": 0.02})):
        (tmp_path / name).mkdir()
        book = ledger(tmp_path / name, budget=1)
        book.ask()
        book.report(0, {**result(1, 0.4), "baseline/loss": 1.0, **more})
        book.end(0)
        study = open_study(tmp_path / name, SweepSettings())
        text = "\n".join(final_lines(tmp_path / name, study, study_status(study)))
        if name == "people":
            assert "and people (lower is better, but for identity)" in text
            assert "0.5100" in text and "-0.0400" in text and "identity  pitch" in text
            assert "val/loss ± 0.031 (standard error over voices and people" in text
        else:
            assert "identity" not in text and "val/loss ± 0.020 (standard error over voices," in text
