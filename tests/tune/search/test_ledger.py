"""tune.search.ledger: what it tells the study, for every way in which a trial can end, and what it makes of a study again."""

import errno
import math
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, DiskError
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import STUDY_FILE, _Journal, repair_journal
from tune.search.ledger import Ending, TrialLedger
from tune.search.study import open_study

SEARCH: dict[str, Any] = {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def ledger(
    folder: Path, budget: int | None = 3, search: Any = SEARCH, pruner: str = "none", **settings: Any
) -> TrialLedger:
    sweep = SweepSettings(trials=budget, sampler="random", pruner=pruner, **settings)  # type: ignore[arg-type]
    study = open_study(folder, sweep, create=True)
    return TrialLedger(study, Space.parse(search, RunConfig(), "a.yaml"), RunConfig(), folder / "trials", sweep)


def endings(book: TrialLedger) -> dict[int, Ending]:
    return dict(book.ended)


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
    assert endings(book) == {0: Ending("complete", 1.0)}


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
    assert endings(book)[1] == Ending("pruned", 2.0)


def test_the_budget_counts_every_trial_and_survives_reopening(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=2)
    assert book.left == 2
    book.ask()
    book.fail(0, "lost")
    book.end(0)
    again = ledger(tmp_path, budget=2)
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


def test_what_is_interrupted_is_handed_out_again_as_it_was(tmp_path: Path) -> None:
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
    assert [trial.state for trial in told(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]
    assert [ending.state for ending in endings(book).values()] == ["complete", "interrupted", "interrupted"]

    again = ledger(tmp_path, budget=4)
    assert (again.reopened, again.left) == (2, 3)
    assert [again.ask(), again.ask()] == [first, second]
    assert again.report(1, result(2, 9.0))  # told already
    assert again.report(1, result(3, 2.5))
    again.end(1)
    again.report(2, result(1, 5.0))
    again.end(2)
    trials = told(tmp_path)
    assert [(trial.state, trial.value) for trial in trials[1:]] == [(TrialState.COMPLETE, v) for v in (2.0, 5.0)]
    assert trials[1].intermediate_values == {1: 3.0, 2: 2.0, 3: 2.5}
    assert trials[1].user_attrs["best_epoch"] == 2
    last = again.ask()
    assert last is not None and last["number"] == 3
    assert again.ask() is None and len(told(tmp_path)) == 4


def test_a_trial_that_was_asked_for_but_not_described_is_described_again(tmp_path: Path) -> None:
    """The driver was killed between two lines of the journal."""
    study = open_study(tmp_path, SweepSettings(sampler="random"), create=True)
    study.ask()
    asked = ledger(tmp_path).ask()
    assert asked is not None and asked["number"] == 0
    assert told(tmp_path)[0].user_attrs["params"] == asked["params"]


def test_a_resumed_sampler_does_not_draw_again_what_it_drew(tmp_path: Path) -> None:
    drawn = []
    for _ in range(4):
        asked = ledger(tmp_path, budget=4).ask()
        assert asked is not None
        drawn.append(asked["params"]["train.learning_rate"])
        study = open_study(tmp_path, SweepSettings())
        study.tell(asked["number"], 1.0)
    assert len(set(drawn)) == 4


def test_a_full_disk_closes_the_ledger_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger(tmp_path)
    book.ask()
    book.ask()
    book.report(0, result(1, 1.0))
    book.end(0)

    def full(self: object, logs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(_Journal, "append_logs", full)
        assert not book.report(1, result(1, 1.0))
        book.end(1)
        assert book.ask() is None
    assert isinstance(book.fatal, DiskError) and "No space left" in str(book.fatal)
    assert book.interrupt_all() == 1
    assert [trial.state for trial in told(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING]


@pytest.mark.parametrize("room", range(0, 400, 40))
def test_a_line_that_the_disk_has_no_room_for_leaves_no_half(tmp_path: Path, room: int) -> None:
    book = ledger(tmp_path)
    book.ask()
    size = (tmp_path / STUDY_FILE).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
    try:
        book.report(0, result(1, 1.0))
        book.end(0)
        assert isinstance(book.fatal, DiskError) and book.ask() is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / STUDY_FILE).read_bytes().endswith(b"}\n")
    assert book.interrupt_all() == 1
    again = ledger(tmp_path)
    assert again.reopened == 1
    again.ask()
    assert again.report(0, result(1, 1.0)) and again.report(0, result(2, 0.5))
    again.end(0)
    assert told(tmp_path)[0].value == 0.5


@pytest.mark.parametrize("left", [b"\0" * 50, b'{"op_code": 5', b"\0\0\n\0\0", b'{"op_code"\n\0\0\n'])
def test_what_a_machine_that_lost_its_power_left_is_taken_back(tmp_path: Path, left: bytes) -> None:
    book = ledger(tmp_path)
    book.ask()
    whole = (tmp_path / STUDY_FILE).read_bytes()
    (tmp_path / STUDY_FILE).write_bytes(whole + left)
    repair_journal(tmp_path)
    assert (tmp_path / STUDY_FILE).read_bytes() == whole
    assert ledger(tmp_path).reopened == 1


def test_what_was_told_is_on_the_disk_within_a_second_or_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger(tmp_path)
    book.tick()
    synced: list[int] = []
    monkeypatch.setattr("tune.search.study.os.fsync", synced.append)
    book.ask()
    book.tick()
    assert not synced  # not at each line
    monkeypatch.setattr("tune.search.ledger._SYNC", 0.0)
    book.tick()
    book.tick()
    assert len(synced) == 1  # and not for nothing
    book.report(0, result(1, 1.0))
    book.tick()
    assert len(synced) == 2


def test_a_trial_that_a_stop_meets_between_two_epochs_is_interrupted_and_not_complete(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for _ in range(2):
        book.ask()
        book.report(len(book._open) - 1, result(1, 1.0))
    book.close("stopped")
    last = {**result(2, 0.5), "done": True}
    assert not book.report(0, result(2, 0.5))  # Ray stops it then, and shows the same result once more
    book.report(0, last)
    book.end(0)
    assert not book.report(1, last)  # this one was done anyway
    book.end(1)
    assert {number: ending.state for number, ending in book.ended} == {0: "interrupted", 1: "complete"}
    assert [trial.state for trial in told(tmp_path)] == [TrialState.RUNNING, TrialState.COMPLETE]
    assert ledger(tmp_path).reopened == 1


def test_a_trial_that_a_node_gives_back_goes_to_another_and_a_node_that_gives_back_many_stops_the_sweep(
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
    assert [trial.state for trial in told(tmp_path)] == [TrialState.RUNNING]


def test_a_database_that_is_gone_stops_the_sweep_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger(tmp_path)
    book.ask()

    def gone(self: object, logs: object) -> None:
        raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.")

    monkeypatch.setattr(_Journal, "append_logs", gone)
    assert not book.report(0, result(1, 1.0))
    assert "cannot be written: An exception is raised" in str(book.fatal)


def test_a_trial_s_full_disk_closes_the_ledger_too(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    assert not book.report(0, {"disk": "last.safetensors: cannot be written", "done": True})
    book.end(0)
    assert book.ask() is None and str(book.fatal) == "last.safetensors: cannot be written"
    assert told(tmp_path)[0].state == TrialState.RUNNING


def test_what_a_killed_driver_half_wrote_is_taken_back(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    path = tmp_path / STUDY_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 6, "trial_')
    (tmp_path / f"{STUDY_FILE}.lock").symlink_to(path)
    repair_journal(tmp_path)
    assert path.read_bytes() == whole
    again = ledger(tmp_path)
    assert again.reopened == 1 and again.ask() is not None


def test_out_of_gpu_memory_a_trial_is_handed_out_once_more_with_the_share_that_would_do(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=1, gpus_per_trial=0.25)
    first = book.ask()
    assert first is not None and first["gpus"] == 0.25
    short = {"out_of_memory": "out of GPU memory at 25% of the card", "share": 0.5, "done": True}
    assert not book.report(0, short)
    book.end(0)
    assert book.ended == []
    assert book.ask() == {**first, "gpus": 0.5}
    assert not book.report(0, {**short, "share": 1.0})
    book.end(0)
    assert book.ask() is None
    (trial,) = told(tmp_path)
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, "out of GPU memory at 25% of the card")


def test_a_sweep_whose_first_trials_all_fail_stops(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=9, stop_after_failures=2)
    for number in range(2):
        assert book.ask() is not None
        book.fail(number, "no such voice")
        book.end(number)
    assert book.ask() is None and book.closed == "the first 2 trials failed"
    assert len(told(tmp_path)) == 2

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


def test_hours_are_those_of_all_resumptions_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tune.search.ledger.time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(2):
        book = ledger(tmp_path, budget=None, hours=1.0)
        assert book.ask() is not None and book.left is None
        now[0] += 0.4 * 3600
        book.tick()
        assert book.ask() is not None
        book.note_time()
    book = ledger(tmp_path, budget=None, hours=1.0)
    now[0] += 0.3 * 3600
    book.tick()
    assert [book.ask() is not None for _ in range(book.reopened)] == [True] * 2  # what was in flight goes on
    assert book.ask() is None and not book.unmet


def test_gpu_hours_are_those_of_the_trials_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tune.search.ledger.time", SimpleNamespace(monotonic=lambda: now[0]))
    book = ledger(tmp_path, budget=None, gpu_hours=1.0, gpus_per_trial=0.25)
    book.ask()
    book.ask()
    now[0] += 1.5 * 3600
    book.tick()
    assert book.unmet  # 2 trials, a quarter each: 0.75 hours
    now[0] += 0.6 * 3600
    book.tick()
    assert not book.unmet and book.ask() is None


def test_several_objectives_are_told_as_they_were_at_the_best_epoch(tmp_path: Path) -> None:
    book = ledger(tmp_path, objectives=("val/stft", "train/seconds_per_step"))
    book.ask()
    for epoch, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        assert book.report(0, {**result(epoch, loss), "val/stft": loss / 2, "train/steps_per_second": 4.0 * epoch})
        assert not book.should_prune(0)
    book.end(0)
    (trial,) = told(tmp_path)
    assert trial.values == [0.5, 0.125]
    assert trial.user_attrs["epochs"] == 3


def test_tpe_learns_within_a_small_budget(tmp_path: Path) -> None:
    settings = SweepSettings(trials=12, sampler="tpe", seed=3)
    study = open_study(tmp_path, settings, create=True)
    book = TrialLedger(study, Space.parse(SEARCH, RunConfig(), ""), RunConfig(), tmp_path, settings)
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
