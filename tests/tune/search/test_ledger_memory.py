"""tune.search.ledger: what a ledger remembers of a trial in a later driver, and what it tells of it meanwhile."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.tune.search.ledgers import endings, ledger, result, stored_trials
from tune.search.journal import StudyJournal
from tune.search.results import Ending, TrialWatcher

SHORT = {"out_of_memory": "out of GPU memory; 3 GB of 8", "done": True}


def test_a_larger_share_and_that_it_was_tried_outlive_the_driver(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = ledger(tmp_path, gpus_per_trial=0.25)
    book.ask()
    book.ask()
    assert not book.report(0, {**SHORT, "share": 1.0})
    assert caplog.messages == ["trial 0: out of GPU memory; it starts again with 1 of a GPU"]
    book.end(0)
    book.interrupt_all()

    again = ledger(tmp_path, gpus_per_trial=0.25)
    shares = {asked["number"]: asked["gpus"] for asked in (again.ask(), again.ask()) if asked is not None}
    assert shares == {0: 1.0, 1: 0.25}
    for number in (0, 1):
        again.report(number, {**SHORT, "share": 1.0})
        again.end(number)
    assert endings(again) == {0: Ending("failed", None, "out of GPU memory; 3 GB of 8")}
    retried = [asked for asked in (again.ask(),) if asked is not None]
    assert [(asked["number"], asked["gpus"]) for asked in retried] == [(1, 1.0)]


@pytest.mark.parametrize(("gpus", "share"), [(0.0, 0.5), (0.5, 0.5), (0.5, 0.25), (0.5, 1.5)])
def test_a_share_that_is_no_larger_or_more_than_a_gpu_is_not_tried(tmp_path: Path, gpus: float, share: float) -> None:
    book = ledger(tmp_path, budget=1, gpus_per_trial=gpus)
    book.ask()
    book.report(0, {**SHORT, "share": share})
    book.end(0)
    assert book.ask() is None
    assert endings(book)[0].error == "out of GPU memory; 3 GB of 8"


def test_a_failed_trial_that_had_epochs_is_failed_in_the_study_and_has_no_value(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    book.report(0, result(1, 1.0))
    book.report(0, {"error": "no such voice"})
    book.end(0)
    assert stored_trials(tmp_path)[0].state == TrialState.FAIL
    assert endings(book) == {0: Ending("failed", None, "no such voice")}


def test_an_interrupted_trial_ends_with_its_best_value_if_it_has_one(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for number, losses in enumerate(([3.0, 1.0, 2.0], [])):
        book.ask()
        for epoch, loss in enumerate(losses, 1):
            book.report(number, result(epoch, loss))
        assert not book.report(number, {"interrupted": "step 5", "done": True})
        book.end(number)
    assert endings(book) == {0: Ending("interrupted", 1.0), 1: Ending("interrupted", None)}
    assert [trial.state for trial in stored_trials(tmp_path)] == [TrialState.RUNNING] * 2


def test_a_trial_whose_end_cannot_be_written_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger(tmp_path)
    book.ask()
    book.report(0, result(1, 1.0))

    def full(self: object, logs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(StudyJournal, "append_logs", full)
    book.end(0)
    assert endings(book) == {0: Ending("interrupted")}
    assert book.closed == str(book.disk_error) == f"{tmp_path}: the study cannot be written: No space left on device"


def test_several_objectives_keep_their_epochs_in_a_later_driver(tmp_path: Path) -> None:
    def reported(epoch: int, loss: float) -> dict[str, object]:
        return {**result(epoch, loss), "val/stft": loss, "train/steps_per_second": 4.0}

    objectives = ("val/stft", "train/seconds_per_step")
    book = ledger(tmp_path, objectives=objectives)
    book.ask()
    book.report(0, reported(1, 3.0))
    book.report(0, reported(2, 2.0))
    book.interrupt_all()
    again = ledger(tmp_path, objectives=objectives)
    again.ask()
    assert again.report(0, reported(2, 1.0))  # known: it changes nothing
    again.end(0)
    assert stored_trials(tmp_path)[0].values == [2.0, 0.25]


def test_a_pruned_trial_is_a_success_of_a_sweep(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=9, pruner="halving", stop_after_failures=1)
    for number, loss in enumerate((1.0, 2.0)):
        book.ask()
        book.report(number, result(1, loss))
    assert book.should_prune(0) is False
    assert book.should_prune(1)
    book.end(1)
    book.fail(0, "no such voice")
    book.end(0)
    assert book.closed is None and book.ask() is not None


@pytest.mark.parametrize(("most", "closed"), [(0, False), (1, True)])
def test_a_first_failure_stops_a_sweep_if_the_settings_say_so(tmp_path: Path, most: int, closed: bool) -> None:
    book = ledger(tmp_path, stop_after_failures=most)
    book.ask()
    book.fail(0, "no such voice")
    book.end(0)
    assert (book.closed is not None) == closed


def test_the_reasons_of_unfit_nodes_are_kept(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for reason in ("node a: has other code", "node b: has no GPU"):
        book.ask()
        book.report(0, {"unfit": reason, "done": True})
        book.end(0)
    assert book.unfit == ["node a: has other code", "node b: has no GPU"]


def test_a_watcher_is_told_of_epochs_and_of_the_best_ones(tmp_path: Path) -> None:
    told: list[tuple[object, ...]] = []

    class Watcher(TrialWatcher):
        def started(self, number: int, params: Mapping[str, Any]) -> None:
            told.append(("started", number, params))

        def improved(self, number: int, epoch: int, scores: Mapping[str, float]) -> None:
            told.append(("improved", number, epoch, scores["val/loss"]))

        def reported(self, number: int) -> None:
            told.append(("reported", number))

    book = ledger(tmp_path)
    book.watcher = Watcher()
    asked = book.ask()
    assert asked is not None
    for epoch, loss in ((1, 3.0), (2, 3.0), (3, 2.0)):
        book.report(0, result(epoch, loss))
    reported = ("reported", 0)
    started = ("started", 0, asked["params"])
    assert told == [started, reported, ("improved", 0, 1, 3.0), reported, reported, ("improved", 0, 3, 2.0)]


def test_time_is_saved_twice_a_minute_and_synced_each_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, synced = [1000.0], []
    monkeypatch.setattr("tune.search.ledger.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("tune.search.ledger.sync_study", synced.append)
    book = ledger(tmp_path)

    def after(seconds: float) -> tuple[int, float | None]:
        synced.clear()
        now[0] += seconds
        book.tick()
        return len(synced), book._study.user_attrs.get("seconds")

    assert [after(0.4) for _ in range(4)] == [(0, None), (0, None), (1, None), (0, None)]
    assert after(28.0) == (1, None)
    assert after(1.5) == (1, pytest.approx(31.1))
    assert after(1.5) == (1, pytest.approx(31.1))
