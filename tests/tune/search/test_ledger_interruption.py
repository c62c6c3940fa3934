"""tune.search.ledger: interrupted trials, which are handed out again, and a study that cannot be written."""

import errno
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from nuanced_core.errors import DiskError
from tests.tune.search.ledgers import endings, ledger, result, stored_trials
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import StudyJournal
from tune.search.study import open_study


def test_an_interrupted_trial_is_handed_out_again_unchanged(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=4)
    book.ask()
    book.report(0, result(1, 1.0))
    book.end(0)
    first, second = book.ask(), book.ask()
    book.report(1, result(1, 3.0))
    book.report(1, result(2, 2.0))
    assert not book.report(2, {"interrupted": "step 5", "done": True})
    book.end(2)
    assert book.interrupt_all() == 2
    assert [trial.state for trial in stored_trials(tmp_path)] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
        TrialState.RUNNING,
    ]
    assert [ending.state for ending in endings(book).values()] == ["complete", "interrupted", "interrupted"]

    again = ledger(tmp_path, budget=4)
    assert again.reopened == 2 and again.has_budget
    assert [again.ask(), again.ask()] == [first, second]
    assert again.report(1, result(2, 9.0))  # reported already
    assert again.report(1, result(3, 2.5))
    again.end(1)
    again.report(2, result(1, 5.0))
    again.end(2)
    trials = stored_trials(tmp_path)
    assert [(trial.state, trial.value) for trial in trials[1:]] == [(TrialState.COMPLETE, v) for v in (2.0, 5.0)]
    assert trials[1].intermediate_values == {1: 3.0, 2: 2.0, 3: 2.5}
    assert trials[1].user_attrs["best_epoch"] == 2
    last = again.ask()
    assert last is not None and last["number"] == 3
    assert again.ask() is None and len(stored_trials(tmp_path)) == 4


def test_a_trial_without_params_gets_them_when_it_is_handed_out_again(tmp_path: Path) -> None:
    """The driver was killed between two lines of the journal."""
    study = open_study(tmp_path, SweepSettings(sampler="random"), create=True)
    study.ask()
    asked = ledger(tmp_path).ask()
    assert asked is not None and asked["number"] == 0
    assert stored_trials(tmp_path)[0].user_attrs["params"] == asked["params"]


def test_a_trial_stopped_between_two_epochs_is_interrupted_instead_of_complete(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for _ in range(2):
        book.ask()
        book.report(len(book._open) - 1, result(1, 1.0))
    book.close("stopped")
    last = {**result(2, 0.5), "done": True}
    assert not book.report(0, result(2, 0.5))  # Ray then stops the trial and reports the same result again
    book.report(0, last)
    book.end(0)
    assert not book.report(1, last)  # the last epoch, so the trial is complete
    book.end(1)
    assert {number: ending.state for number, ending in book.ended} == {0: "interrupted", 1: "complete"}
    assert [trial.state for trial in stored_trials(tmp_path)] == [TrialState.RUNNING, TrialState.COMPLETE]
    assert ledger(tmp_path).reopened == 1


def test_a_trial_returned_by_an_unfit_node_is_handed_out_again_until_too_many_are_returned(
    tmp_path: Path,
) -> None:
    book = ledger(tmp_path)
    for _ in range(4):
        asked = book.ask()
        assert asked is not None and asked["number"] == 0 and book.closed is None
        book.report(0, {"unfit": "node a: has other code", "done": True})
        book.end(0)
    assert book.ask() is None and book.closed == "node a: has other code"
    assert book.interrupt_all() == 1 and not book.ended
    assert [trial.state for trial in stored_trials(tmp_path)] == [TrialState.RUNNING]


def test_a_full_disk_closes_the_ledger_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger(tmp_path)
    book.ask()
    book.ask()
    book.report(0, result(1, 1.0))
    book.end(0)

    def full(self: object, logs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(StudyJournal, "append_logs", full)
        assert not book.report(1, result(1, 1.0))
        book.end(1)
        assert book.ask() is None
    assert isinstance(book.disk_error, DiskError) and "No space left" in str(book.disk_error)
    assert book.interrupt_all() == 1
    assert [trial.state for trial in stored_trials(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_an_unreachable_database_closes_the_ledger_with_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = ledger(tmp_path)
    book.ask()

    def gone(self: object, logs: object) -> None:
        raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.")

    monkeypatch.setattr(StudyJournal, "append_logs", gone)
    assert not book.report(0, result(1, 1.0))
    assert "cannot be written: An exception is raised" in str(book.disk_error)


def test_a_full_disk_of_a_trial_closes_the_ledger(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    assert not book.report(0, {"disk": "last.safetensors: cannot be written", "done": True})
    book.end(0)
    assert book.ask() is None and str(book.disk_error) == "last.safetensors: cannot be written"
    assert stored_trials(tmp_path)[0].state == TrialState.RUNNING


@pytest.mark.parametrize("objectives", [("val/loss",), ("val/loss", "val/stft")])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_epoch_of_which_a_part_was_stored_is_stored_whole_when_it_is_reported_again(
    written: int, objectives: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = ledger(tmp_path, objectives=objectives)
    book.ask()
    append, left = StudyJournal.append_logs, [written]

    def full_after_some(self: Any, logs: Any) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        append(self, logs)

    with monkeypatch.context() as patch:
        patch.setattr(StudyJournal, "append_logs", full_after_some)
        book.report(0, {**result(1, 1.0), "val/stft": 0.5})
    resumed = ledger(tmp_path, objectives=objectives)
    resumed.ask()
    resumed.report(0, {**result(1, 1.0), "val/stft": 0.5})
    resumed.end(0)
    trial = stored_trials(tmp_path)[0]
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [1.0, 0.5][: len(objectives)]
    assert trial.user_attrs["metrics"]["val/loss"] == 1.0 and trial.user_attrs["best_epoch"] == 1
