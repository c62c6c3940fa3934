"""tune.search.enqueue: settings that are tried first, and warnings about those that are left out."""

import logging
from pathlib import Path
from typing import Any

import optuna
import pytest

from nuanced_core.errors import ConfigError
from tests.tune.search.ledgers import ledger, result
from tune.config.sweep_config import SweepConfig, parse_sweep
from tune.search.enqueue import enqueue
from tune.search.study import read_study

SEARCH: dict[str, Any] = {
    "train.learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
    "encoder.width": [64, 128],
}


def sweep(search: dict[str, Any] = SEARCH, **settings: Any) -> SweepConfig:
    return parse_sweep({"search": search, "sweep": settings}, "a.yaml")


def enqueued(config: SweepConfig, times: int = 1) -> list[dict[str, Any]]:
    study = optuna.create_study()
    for _ in range(times):
        enqueue(study, config)
    return [trial.system_attrs["fixed_params"] for trial in study.trials]


def other_sweep(folder: Path) -> Path:
    """Create the study of a sweep with the losses 3, 1 and 2, and return its folder."""
    folder.mkdir()
    book = ledger(folder, search={**SEARCH, "encoder.depth": [1, 2, 3]})
    for loss in (3.0, 1.0, 2.0):
        asked = book.ask()
        assert asked is not None
        book.report(asked["number"], result(1, loss))
        book.end(asked["number"])
    return folder


def params_of(folder: Path) -> list[dict[str, Any]]:
    return [trial.user_attrs["params"] for trial in read_study(folder).trials]


def test_enqueued_settings_are_tried_first_and_once() -> None:
    config = sweep(enqueue=[{"encoder.width": 128}, {"encoder.width": 64, "train.learning_rate": 1.0e-3}])
    expected = [{"encoder.width": 128}, {"encoder.width": 64, "train.learning_rate": 1.0e-3}]
    assert enqueued(config) == enqueued(config, times=2) == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"encoder.widht": 64}, r"sweep\.enqueue\[0\]: encoder\.widht: is not searched; did you mean encoder\.width"),
        ({"encoder.width": 65}, r"sweep\.enqueue\[0\]: encoder\.width: 65: not one of \[64, 128\]"),
        ({"train.learning_rate": 1.0}, r"sweep\.enqueue\[0\]: train\.learning_rate: 1\.0: not in "),
    ],
)
def test_an_enqueued_setting_that_cannot_be_tried_is_refused(item: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        enqueued(sweep(enqueue=[item]))


def test_a_warm_start_tries_the_best_trials_of_another_sweep(tmp_path: Path) -> None:
    folder = other_sweep(tmp_path / "other")
    first, second, third = params_of(folder)
    search = {**SEARCH, "encoder.depth": [1, 2, 3]}
    assert enqueued(sweep(search, warm_start=str(folder))) == [second, third, first]
    assert enqueued(sweep(search, warm_start=str(folder), warm_start_trials=1)) == [second]


def test_what_a_warm_start_leaves_out_is_logged_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = other_sweep(tmp_path / "other")
    rate = params_of(folder)[1]["train.learning_rate"]
    search = {**SEARCH, "encoder.width": [32]}
    assert enqueued(sweep(search, warm_start=str(folder), warm_start_trials=1)) == [{"train.learning_rate": rate}]
    warnings = [record for record in caplog.records if record.name == "tune.search.enqueue"]
    assert {record.levelno for record in warnings} == {logging.WARNING}
    messages = [record.getMessage() for record in warnings]
    assert len(messages) == 2
    assert all(message.startswith(f"Trial 1 of {folder}: setting left out: sweep.warm_start: ") for message in messages)
    assert any("encoder.depth: is not searched" in message for message in messages)
    assert any("encoder.width: " in message and "not one of [32]" in message for message in messages)


def test_a_warm_start_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path).ask()
    with pytest.raises(ConfigError, match=r"sweep\.warm_start: .*: holds no complete trial; name another sweep"):
        enqueued(sweep(warm_start=str(tmp_path)))
    with pytest.raises(ConfigError, match="not the folder of a sweep"):
        enqueued(sweep(warm_start=str(tmp_path / "nowhere")))
