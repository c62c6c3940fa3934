"""tune.search.distinct: no settings twice, finite spaces that are used up, and grids."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from nuanced_core.config.settings import RunConfig
from tests.tune.search.ledgers import SEARCH, result
from tune.config.space import Space
from tune.config.sweep_config import parse_sweep
from tune.config.sweep_settings import SweepSettings
from tune.search import distinct
from tune.search.enqueue import enqueue
from tune.search.ledger import TrialLedger
from tune.search.samplers import make_sampler
from tune.search.study import open_study

RUN = RunConfig()
FOUR: dict[str, Any] = {"encoder.width": [64, 128], "encoder.depth": [1, 2]}
# 3 widths × (mean, or 2 poolings with 2 numbers of heads): 15 combinations.
CONDITIONAL: dict[str, Any] = {
    "encoder.width": {"low": 64, "high": 192, "step": 64},
    "encoder.pooling": ["mean", "attentive", "queries"],
    "encoder.heads": {"choices": [1, 2], "when": {"encoder.pooling": ["attentive", "queries"]}},
}


def open_ledger(folder: Path, search: Any, run: RunConfig = RUN, **settings: Any) -> TrialLedger:
    sweep = SweepSettings(**{"trials": 40, "pruner": "none", **settings})
    return TrialLedger(
        open_study(folder, sweep, create=True), Space.parse(search, run, ""), run, folder / "trials", sweep
    )


def run_all(ledger: TrialLedger, most: int = 100) -> list[dict[str, Any]]:
    """Run up to ``most`` trials of one epoch and return their settings."""
    found = []
    while len(found) < most and (asked := ledger.ask()) is not None:
        found.append(asked["params"])
        ledger.report(asked["number"], result(1, asked["params"].get("encoder.width", 1) / 64))
        ledger.end(asked["number"])
    return found


def distinct_ones(found: list[dict[str, Any]]) -> set[str]:
    return {str(sorted(params.items())) for params in found}


@pytest.mark.parametrize(
    ("sampler", "search", "size"),
    [
        *((sampler, FOUR, 4) for sampler in ("tpe", "random", "gp", "qmc", "grid")),
        *((sampler, CONDITIONAL, 15) for sampler in ("tpe", "random", "qmc", "grid")),  # gp takes 10 s for it
    ],
)
def test_a_finite_space_is_searched_to_its_end_without_a_repeat(
    tmp_path: Path, sampler: str, search: Any, size: int
) -> None:
    ledger = open_ledger(tmp_path, search, sampler=sampler)
    found = run_all(ledger)
    assert len(found) == len(distinct_ones(found)) == size == ledger.tried[1]
    assert ledger.used_up and not ledger.has_budget and ledger.closed is None
    again = open_ledger(tmp_path, search, sampler=sampler)
    assert again.used_up and again.ask() is None


def test_trials_at_the_same_time_have_different_settings(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, FOUR)
    asked = [ledger.ask() for _ in range(5)]
    assert asked[4] is None
    assert len(distinct_ones([trial["params"] for trial in asked[:4] if trial is not None])) == 4


def test_a_resumed_sweep_goes_on_with_what_is_left(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, CONDITIONAL, sampler="grid")
    first = run_all(ledger, most=6)
    assert ledger.tried == (6, 15)
    rest = run_all(open_ledger(tmp_path, CONDITIONAL, sampler="grid"))
    assert (len(first), len(rest), len(distinct_ones(first + rest))) == (6, 9, 15)


def test_a_wider_space_has_settings_left(tmp_path: Path) -> None:
    search = {"encoder.width": {"low": 64, "high": 128, "step": 64}}
    assert len(run_all(open_ledger(tmp_path, search))) == 2
    wider = {"encoder.width": {"low": 64, "high": 256, "step": 64}}
    assert [params["encoder.width"] for params in run_all(open_ledger(tmp_path, wider, sampler="random"))] in (
        [192, 256],
        [256, 192],
    )


def test_settings_are_tried_again_if_the_rest_of_the_run_has_changed(tmp_path: Path) -> None:
    assert len(run_all(open_ledger(tmp_path, FOUR))) == 4
    longer = RunConfig.model_validate({"train": {"epochs": RUN.train.epochs + 1}})
    assert len(run_all(open_ledger(tmp_path, FOUR, longer))) == 4
    assert open_ledger(tmp_path, FOUR, longer).used_up and open_ledger(tmp_path, FOUR).used_up
    elsewhere = RunConfig.model_validate({"models": {"source": "packages"}})  # the same files from another place
    assert open_ledger(tmp_path, FOUR, elsewhere).used_up


def test_what_an_enqueued_trial_leaves_open_is_drawn_so_that_no_settings_repeat(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, FOUR)
    for _ in range(2):
        ledger._study.enqueue_trial({"encoder.width": 64})
    ledger = open_ledger(tmp_path, FOUR)
    found = run_all(ledger)
    assert [params["encoder.width"] for params in found] == [64, 64, 128, 128]
    assert len(distinct_ones(found)) == 4


def test_a_grid_ends_though_a_trial_without_settings_is_enqueued(tmp_path: Path) -> None:
    open_ledger(tmp_path, FOUR)._study.enqueue_trial({})
    assert len(run_all(open_ledger(tmp_path, FOUR, sampler="grid", trials=None), most=6)) == 4


def test_a_grid_ends_though_another_process_enqueues_settings_meanwhile(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, FOUR, sampler="grid", trials=None)
    ledger._study.enqueue_trial({"encoder.width": 64, "encoder.depth": 1})
    assert len(run_all(ledger, most=6)) == 4


def test_enqueued_settings_are_run_though_the_space_is_used_up(tmp_path: Path) -> None:
    run_all(open_ledger(tmp_path, FOUR))
    study = open_study(tmp_path, SweepSettings())
    study.enqueue_trial({"encoder.width": 64, "encoder.depth": 1})
    assert run_all(open_ledger(tmp_path, FOUR)) == [{"encoder.width": 64, "encoder.depth": 1}]


def test_an_enqueued_value_that_is_no_longer_allowed_fails_its_trial(tmp_path: Path) -> None:
    search = {**SEARCH, "encoder.width": {"low": 64, "high": 512, "step": 64}}
    config = parse_sweep({"search": search, "sweep": {"enqueue": [{"encoder.width": 512}]}}, "")
    study = open_study(tmp_path, config.sweep, create=True)
    enqueue(study, config)
    ledger = open_ledger(tmp_path, {**SEARCH, "encoder.width": {"low": 64, "high": 128, "step": 64}})
    asked = ledger.ask()
    assert asked is not None and asked["number"] == 1
    assert ledger.ended[0][1].state == "failed" and "encoder.width: 512" in str(ledger.ended[0][1].error)


def test_repeats_are_replaced_in_a_space_that_is_too_large_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distinct, "MOST_COUNTED", 10)
    ledger = open_ledger(tmp_path, CONDITIONAL, sampler="tpe")
    found = run_all(ledger, most=13)
    assert ledger.tried[1] is None and len(distinct_ones(found)) == 13


def test_floats_that_differ_by_rounding_are_the_same_settings(tmp_path: Path) -> None:
    search = {"loss.style": {"low": 0.1, "high": 0.5, "step": 0.1}}
    found = run_all(open_ledger(tmp_path, search, sampler="random"))
    assert sorted(params["loss.style"] for params in found) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "qmc"])
def test_settings_that_do_not_repeat_are_those_of_the_sampler(tmp_path: Path, sampler: str) -> None:
    search = {**CONDITIONAL, **SEARCH}
    drawn = run_all(open_ledger(tmp_path, search, sampler=sampler, seed=3), most=25)
    settings = SweepSettings(trials=40, pruner="none", sampler=sampler, seed=3)  # type: ignore[arg-type]
    study, space = optuna.create_study(), Space.parse(search, RUN, "")
    study.sampler = make_sampler(settings, 0)
    for params in drawn:
        trial = study.ask()
        assert space.suggest(trial) == params
        study.tell(trial, params["encoder.width"] / 64)
