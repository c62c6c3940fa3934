"""tune.search.ledger: finite search spaces, enqueued settings, repeats; a study resumed with another run or space."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from nuanced_core.config.settings import RunConfig
from tests.tune.search.ledgers import ledger, result, stored_trials
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings
from tune.search.ledger import TrialLedger
from tune.search.study import RUN, open_study

WIDTHS: dict[str, Any] = {"encoder.width": [64, 128]}


def finish(book: TrialLedger, most: int = 9) -> list[dict[str, Any]]:
    """Ask for trials until there are none, each complete before the next; return their settings."""
    found = []
    for _ in range(most):
        asked = book.ask()
        if asked is None:
            return found
        found.append(asked["params"])
        book.report(asked["number"], result(1, 1.0 + asked["number"]))
        book.end(asked["number"])
    raise AssertionError(f"{most} trials, and no end")


def pairs(found: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return sorted((params["encoder.width"], params["train.seed"]) for params in found)


def test_a_finite_space_ends_when_each_of_its_settings_has_its_repeats(tmp_path: Path) -> None:
    seed = RunConfig().train.seed
    expected = [(width, seed + n) for width in (64, 128) for n in (0, 1)]
    assert pairs(finish(ledger(tmp_path, None, WIDTHS, hours=1.0, repeats=2))) == expected


def test_repeats_of_a_space_that_was_used_up_are_added_when_it_is_resumed(tmp_path: Path) -> None:
    seed = RunConfig().train.seed
    assert len(finish(ledger(tmp_path, None, WIDTHS, hours=1.0))) == 2
    assert finish(ledger(tmp_path, None, WIDTHS, hours=1.0)) == []
    again = ledger(tmp_path, None, WIDTHS, hours=1.0, repeats=2)
    assert not again.used_up
    assert pairs(finish(again)) == [(64, seed + 1), (128, seed + 1)]


def test_settings_that_were_enqueued_are_tried_though_the_space_is_used_up(tmp_path: Path) -> None:
    finish(ledger(tmp_path, None, WIDTHS, hours=1.0))
    study = open_study(tmp_path, SweepSettings())
    study.enqueue_trial({"encoder.width": 128})
    assert finish(ledger(tmp_path, None, WIDTHS, hours=1.0)) == [{"encoder.width": 128}]


def test_settings_are_new_on_another_run_and_tried_once_on_each(tmp_path: Path) -> None:
    settings = SweepSettings(trials=9, sampler="random", pruner="none")
    run = RunConfig()
    longer = run.model_copy(update={"train": run.train.model_copy(update={"learning_rate": 1e-5})})

    def resumed(run: RunConfig) -> list[int]:
        study = open_study(tmp_path, settings, create=True)
        book = TrialLedger(study, Space.parse(WIDTHS, run, "a.yaml"), run, tmp_path / "trials", settings)
        return sorted(params["encoder.width"] for params in finish(book))

    assert [resumed(run), resumed(run), resumed(longer), resumed(longer), resumed(run)] == [
        [64, 128],
        [],
        [64, 128],
        [],
        [],
    ]
    keys = [trial.user_attrs.get(RUN) for trial in stored_trials(tmp_path)]
    assert keys[:2] == [None, None]
    assert keys[2] == keys[3] and isinstance(keys[2], str)


def test_a_trial_in_flight_keeps_settings_that_the_space_no_longer_has(tmp_path: Path) -> None:
    def space(low: int) -> dict[str, Any]:
        return {"encoder.width": {"low": low, "high": low + 5}}

    first = ledger(tmp_path, search=space(64)).ask()
    again = ledger(tmp_path, search=space(100)).ask()
    assert first is not None and again == first


@pytest.mark.parametrize(("has_success", "closed"), [(False, True), (True, False)])
def test_a_resumed_sweep_without_a_success_stops_after_failures(
    tmp_path: Path, has_success: bool, closed: bool
) -> None:
    book = ledger(tmp_path, budget=9, stop_after_failures=2)
    assert book.ask() is not None
    if has_success:
        book.report(0, result(1, 1.0))
    else:
        book.fail(0, "no such voice")
    book.end(0)
    assert stored_trials(tmp_path)[0].state == (TrialState.COMPLETE if has_success else TrialState.FAIL)
    again = ledger(tmp_path, budget=9, stop_after_failures=2)
    for number in (1, 2):
        assert again.ask() is not None
        again.fail(number, "no such voice")
        again.end(number)
    assert (again.closed is not None) == closed
