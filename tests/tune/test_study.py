"""tune.study: what the ledger tells the study, for every way in which a trial can end."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.config import RunConfig
from nuanced_core.errors import ConfigError
from tune.config import SweepSettings
from tune.space import Space
from tune.study import Ending, TrialLedger, open_study

SEARCH: dict[str, Any] = {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def ledger(folder: Path, budget: int = 3, search: Any = SEARCH, pruner: str = "none") -> TrialLedger:
    settings = SweepSettings(trials=budget, sampler="random", pruner=pruner)  # type: ignore[arg-type]
    study = open_study(folder, settings, create=True)
    return TrialLedger(study, Space.parse(search, RunConfig(), "a.yaml"), RunConfig(), folder / "trials", budget)


def told(folder: Path) -> list[FrozenTrial]:
    """What another process reads from the folder."""
    return open_study(folder, SweepSettings()).trials


def result(epoch: int, loss: float) -> dict[str, Any]:
    return {"epoch": epoch, "val/loss": loss, "val/skill": -loss, "config/train/epochs": 3, "pid": 1}


def test_a_complete_trial_keeps_the_best_epoch(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    asked = book.ask()
    assert asked is not None
    for epoch, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        assert book.report(asked["number"], result(epoch, loss))
    book.end(asked["number"])
    (trial,) = told(tmp_path)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 1.0)
    assert trial.intermediate_values == {1: 3.0, 2: 1.0, 3: 2.0}
    assert trial.user_attrs == {
        "params": asked["params"],
        "best_epoch": 2,
        "metrics": {"val/loss": 1.0, "val/skill": -1.0},
    }
    assert book.endings == {0: Ending("complete", 1.0)}


def test_a_suggestion_is_a_whole_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first, second = book.ask(), book.ask()
    assert first is not None and second is not None
    assert [first["number"], second["number"]] == [0, 1]
    assert first["folder"] == str(tmp_path / "trials" / "0")
    rate = first["params"]["train.learning_rate"]
    assert first["run"] == RunConfig().model_dump(mode="json") | {
        "train": RunConfig().train.model_dump(mode="json") | {"learning_rate": rate}
    }


def test_the_same_epoch_told_twice_counts_once(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    book.report(0, result(1, 3.0))
    assert book.report(0, result(1, 2.0))
    book.end(0)
    assert told(tmp_path)[0].value == 3.0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_fails_the_trial(tmp_path: Path, loss: float) -> None:
    book = ledger(tmp_path)
    book.ask()
    assert book.report(0, result(1, 3.0))
    assert not book.report(0, result(2, loss))
    book.end(0)
    (trial,) = told(tmp_path)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"] == f"epoch 2: val/loss is {loss}"
    assert trial.intermediate_values == {1: 3.0}


@pytest.mark.parametrize(
    ("last", "error"),
    [
        ({"error": "step 3: loss/stft is nan", "done": True}, "step 3: loss/stft is nan"),
        ({"epoch": 1, "val/stft": 1.0}, "epoch 1: val/loss is missing"),
        (None, "ended before its first val/loss"),
    ],
)
def test_a_trial_without_a_value_fails_with_the_reason(tmp_path: Path, last: dict[str, Any] | None, error: str) -> None:
    book = ledger(tmp_path)
    book.ask()
    if last is not None:
        assert not book.report(0, last)
    book.end(0)
    (trial,) = told(tmp_path)
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, error)


def test_the_pruner_s_verdict_ends_the_trial_with_its_last_value(tmp_path: Path) -> None:
    book = ledger(tmp_path, pruner="halving")
    for number, loss in enumerate((1.0, 2.0)):
        book.ask()
        book.report(number, result(1, loss))
    assert not book.should_prune(0)
    assert book.should_prune(1)
    book.end(1)
    trial = told(tmp_path)[1]
    assert (trial.state, trial.value) == (TrialState.PRUNED, 2.0)
    assert book.endings[1] == Ending("pruned", 2.0)


def test_the_budget_counts_every_trial_and_survives_reopening(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=2)
    assert book.left == 2
    book.ask()
    book.fail(0, "lost")
    book.end(0)
    study = open_study(tmp_path, SweepSettings())
    space = Space.parse(SEARCH, RunConfig(), "a.yaml")
    again = TrialLedger(study, space, RunConfig(), tmp_path / "trials", 2)
    assert again.left == 1
    asked = again.ask()
    assert asked is not None and asked["number"] == 1
    assert again.ask() is None


def test_contradicting_settings_are_failed_trials_of_the_budget(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=8, search={"loss.stft": [0.0, 1.0], "loss.style": [0.0, 1.0]})
    numbers = []
    while (asked := book.ask()) is not None:
        assert asked["params"] != {"loss.stft": 0.0, "loss.style": 0.0}
        numbers.append(asked["number"])
    trials = told(tmp_path)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(trials) == 8
    assert failed  # else the seed must be another one
    assert sorted(numbers + [trial.number for trial in failed]) == list(range(8))
    assert all("all weights are 0" in trial.user_attrs["error"] for trial in failed)


def test_interrupting_ends_what_runs_and_nothing_else(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    book.report(0, result(1, 1.0))
    book.end(0)
    book.ask()
    assert book.end_all("interrupted") == 1
    assert [trial.state for trial in told(tmp_path)] == [TrialState.COMPLETE, TrialState.FAIL]
    assert book.end_all("interrupted") == 0


def test_tpe_learns_within_a_small_budget(tmp_path: Path) -> None:
    settings = SweepSettings(trials=12, sampler="tpe", seed=3)
    study = open_study(tmp_path, settings, create=True)
    book = TrialLedger(study, Space.parse(SEARCH, RunConfig(), ""), RunConfig(), tmp_path, 12)
    distances = []
    while (asked := book.ask()) is not None:
        distances.append(abs(math.log10(asked["params"]["train.learning_rate"]) + 2))
        book.report(asked["number"], result(1, distances[-1]))
        book.end(asked["number"])
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    assert (
        sum(distances[4:]) / 8
        < sum(abs(math.log10(random.ask().suggest_float("x", 1e-4, 1e-2, log=True)) + 2) for _ in range(200)) / 200
    )


def test_a_folder_without_a_study_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a sweep"):
        open_study(tmp_path, SweepSettings())
    assert not list(tmp_path.iterdir())
