"""tune.search.ledger: what is stored of each trial, for every way in which a trial can end, and the budget."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from nuanced_core.config.settings import RunConfig
from tests.tune.search.ledgers import SEARCH, endings, ledger, result, stored_trials
from tune.search.results import Ending


def test_a_complete_trial_keeps_the_best_epoch(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    asked = book.ask()
    assert asked is not None
    for epoch, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        assert book.report(asked["number"], result(epoch, loss))
    book.end(asked["number"])
    (trial,) = stored_trials(tmp_path)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 1.0)
    assert trial.intermediate_values == {1: 3.0, 2: 1.0, 3: 2.0}
    assert trial.user_attrs == {
        "params": asked["params"],
        "best_epoch": 2,
        "metrics": {"val/loss": 1.0, "val/skill": -1.0},
    }
    assert endings(book) == {0: Ending("complete", 1.0)}


def test_ask_returns_a_complete_run_and_a_folder_for_each_trial(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first, second = book.ask(), book.ask()
    assert first is not None and second is not None
    assert [first["number"], second["number"]] == [0, 1]
    assert first["folder"] == str(tmp_path / "trials" / "0")
    rate = first["params"]["train.learning_rate"]
    assert first["run"] == RunConfig().model_dump(mode="json") | {
        "train": RunConfig().train.model_dump(mode="json") | {"learning_rate": rate}
    }


def test_an_epoch_reported_twice_counts_once(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    book.report(0, result(1, 3.0))
    assert book.report(0, result(1, 2.0))
    book.end(0)
    assert stored_trials(tmp_path)[0].value == 3.0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_fails_the_trial(tmp_path: Path, loss: float) -> None:
    book = ledger(tmp_path)
    book.ask()
    assert book.report(0, result(1, 3.0))
    assert not book.report(0, result(2, loss))
    book.end(0)
    (trial,) = stored_trials(tmp_path)
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
    (trial,) = stored_trials(tmp_path)
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, error)


def test_a_pruned_trial_ends_with_its_last_value(tmp_path: Path) -> None:
    book = ledger(tmp_path, pruner="halving")
    for number, loss in enumerate((1.0, 2.0)):
        book.ask()
        book.report(number, result(1, loss))
    assert not book.should_prune(0)
    assert book.should_prune(1)
    book.end(1)
    trial = stored_trials(tmp_path)[1]
    assert (trial.state, trial.value) == (TrialState.PRUNED, 2.0)
    assert endings(book)[1] == Ending("pruned", 2.0)


def test_the_budget_counts_every_trial_and_survives_reopening(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=2)
    assert book.has_budget
    book.ask()
    book.fail(0, "lost")
    book.end(0)
    again = ledger(tmp_path, budget=2)
    assert again.has_budget
    asked = again.ask()
    assert asked is not None and asked["number"] == 1
    assert again.ask() is None


def test_a_trial_with_contradicting_settings_fails_and_counts_towards_the_budget(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=8, search={**SEARCH, "loss.stft": [0.0, 1.0], "loss.style": [0.0, 1.0]})
    numbers = []
    while (asked := book.ask()) is not None:
        assert asked["params"]["loss.stft"] or asked["params"]["loss.style"]
        numbers.append(asked["number"])
    trials = stored_trials(tmp_path)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(trials) == 8
    assert failed  # otherwise choose another seed
    assert sorted(numbers + [trial.number for trial in failed]) == list(range(8))
    assert all("all weights are 0" in trial.user_attrs["error"] for trial in failed)


@pytest.mark.parametrize(
    ("reason", "error"), [("its process died:\n  killed", "its process died: killed"), (None, "its process failed")]
)
def test_a_trial_whose_process_died_too_often_fails_with_the_reason(
    tmp_path: Path, reason: str | None, error: str
) -> None:
    book = ledger(tmp_path)
    book.ask()
    if reason is not None:
        book.record_process_death(0, reason)
    book.fail_after_process_death(0)
    book.end(0)
    (trial,) = stored_trials(tmp_path)
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, error)
    assert endings(book) == {0: Ending("failed", None, error)}


def test_a_sweep_whose_first_trials_all_fail_stops(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=9, stop_after_failures=2)
    for number in range(2):
        assert book.ask() is not None
        book.fail(number, "no such voice")
        book.end(number)
    assert book.ask() is None and book.closed == "the first 2 trials failed"
    assert len(stored_trials(tmp_path)) == 2

    (tmp_path / "good").mkdir()
    good = ledger(tmp_path / "good", budget=9, stop_after_failures=2)
    good.ask()
    good.report(0, result(1, 1.0))
    good.end(0)
    for number in (1, 2, 3):
        assert good.ask() is not None
        good.fail(number, "no such voice")
        good.end(number)
    assert good.ask() is not None


def test_hours_are_summed_over_resumptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tune.search.ledger.time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(2):
        book = ledger(tmp_path, budget=None, hours=1.0)
        assert book.ask() is not None and book.has_budget
        now[0] += 0.4 * 3600
        book.tick()
        assert book.ask() is not None
        book.save_used_time()
    book = ledger(tmp_path, budget=None, hours=1.0)
    now[0] += 0.3 * 3600
    book.tick()
    assert [book.ask() is not None for _ in range(book.reopened)] == [True] * 2  # interrupted trials continue
    assert book.ask() is None and not book.has_budget


def test_gpu_hours_count_the_gpu_shares_of_running_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tune.search.ledger.time", SimpleNamespace(monotonic=lambda: now[0]))
    book = ledger(tmp_path, budget=None, gpu_hours=1.0, gpus_per_trial=0.25)
    book.ask()
    book.ask()
    now[0] += 9 * 3600
    book.tick()  # both wait for a GPU
    book.set_process(0, True)
    book.set_process(1, True)
    now[0] += 1.5 * 3600
    book.tick()
    assert book.has_budget  # 2 trials, a quarter each: 0.75 hours
    now[0] += 0.6 * 3600
    book.tick()
    assert not book.has_budget and book.ask() is None


def test_several_objectives_have_their_values_at_the_best_epoch(tmp_path: Path) -> None:
    book = ledger(tmp_path, objectives=("val/stft", "train/seconds_per_step"))
    book.ask()
    for epoch, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        assert book.report(0, {**result(epoch, loss), "val/stft": loss / 2, "train/steps_per_second": 4.0 * epoch})
        assert not book.should_prune(0)
    book.end(0)
    (trial,) = stored_trials(tmp_path)
    assert trial.values == [0.5, 0.125]
    assert trial.user_attrs["epochs"] == 3


def test_a_trial_out_of_gpu_memory_is_handed_out_once_more_with_a_larger_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = ledger(tmp_path, budget=1, gpus_per_trial=0.25)
    first = book.ask()
    assert first is not None and first["gpus"] == 0.25
    short = {"out_of_memory": "out of GPU memory at 25% of the card", "share": 0.5, "done": True}
    assert not book.report(0, short)
    book.end(0)
    assert book.ended == []
    assert caplog.messages == ["trial 0: out of GPU memory at 25% of the card; it starts again with 0.5 of a GPU"]
    assert book.ask() == {**first, "gpus": 0.5}
    assert not book.report(0, {**short, "share": 1.0})
    book.end(0)
    assert book.ask() is None
    (trial,) = stored_trials(tmp_path)
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, "out of GPU memory at 25% of the card")
