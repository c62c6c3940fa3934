"""tune.search.pruners: the pruner of each setting, and successive halving compared with Optuna's own."""

import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.tune.search.studies import contents, loss, run_study, run_trial
from tune.config.sweep_settings import SweepSettings
from tune.search.pruners import SortedHalvingPruner, make_pruner


def optuna_s_pruner() -> optuna.pruners.BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


def test_halving_decides_as_optuna_s_own() -> None:
    own = run_study(optuna.samplers.RandomSampler(seed=3), optuna_s_pruner(), 150)
    assert {trial.state for trial in own.trials} >= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    ours = run_study(optuna.samplers.RandomSampler(seed=3), SortedHalvingPruner(3), 150)
    assert contents(ours) == contents(own)


def test_halving_reads_the_rungs_of_an_earlier_process_from_the_study() -> None:
    def continued(pruner: optuna.pruners.BasePruner) -> optuna.Study:
        study = run_study(optuna.samplers.RandomSampler(seed=1), SortedHalvingPruner(3), 40)
        study.pruner = pruner
        for _ in range(40):
            trial = study.ask()
            run_trial(study, trial, loss(trial))
        return study

    assert contents(continued(SortedHalvingPruner(3))) == contents(continued(optuna_s_pruner()))


@pytest.mark.parametrize(
    ("pruner", "kind"),
    [
        ("none", optuna.pruners.NopPruner),
        ("median", optuna.pruners.MedianPruner),
        ("patience", optuna.pruners.PatientPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("halving", SortedHalvingPruner),
    ],
)
def test_each_setting_has_its_pruner(pruner: Any, kind: type[optuna.pruners.BasePruner]) -> None:
    assert type(make_pruner(SweepSettings(pruner=pruner), 9)) is kind


@pytest.mark.parametrize("pruner", ["none", "median", "patience", "hyperband", "halving"])
def test_each_pruner_stops_a_trial_that_gets_worse_and_is_worse_than_all_others(pruner: Any) -> None:
    study = optuna.create_study(study_name="seed of brackets", pruner=make_pruner(SweepSettings(pruner=pruner), 9))
    for _ in range(27):
        good = study.ask()
        for epoch in range(1, 10):
            good.report(1 / epoch, epoch)
            good.should_prune()
        study.tell(good, 0.0)
    bad = study.ask()
    stopped = False
    for epoch in range(1, 10):
        bad.report(10.0 + epoch, epoch)
        stopped |= bad.should_prune()
    assert stopped == (pruner != "none")


def test_patience_is_that_of_the_settings() -> None:
    def last_epoch(patience: int) -> int:
        study = optuna.create_study(pruner=make_pruner(SweepSettings(pruner="patience", patience=patience), None))
        trial = study.ask()
        for epoch in range(1, 30):
            trial.report(float(epoch), epoch)
            if trial.should_prune():
                return epoch
        raise AssertionError("not pruned")

    assert last_epoch(5) == last_epoch(2) + 3


def test_hyperband_plans_its_brackets_for_the_epochs_of_a_trial() -> None:
    def brackets(epochs: int) -> int:
        pruner = make_pruner(SweepSettings(pruner="hyperband"), epochs)
        study = optuna.create_study(pruner=pruner)
        trial = study.ask()
        trial.report(1.0, 1)
        trial.should_prune()
        assert isinstance(pruner, optuna.pruners.HyperbandPruner)
        return len(pruner._pruners)

    assert (brackets(3), brackets(27)) == (2, 4)


def test_halving_prunes_a_trial_without_a_number() -> None:
    study = optuna.create_study(pruner=SortedHalvingPruner(3))
    trial = study.ask()
    assert not trial.should_prune()
    trial.report(math.nan, 1)
    assert trial.should_prune()


@pytest.mark.parametrize(
    ("values", "stopped"),
    [((9.0, 0.5, 9.0), False), ((0.5, 9.0, 9.0), False), ((9.0, 9.0, 9.0), True), ((0.5, math.nan, 9.0), False)],
)
def test_halving_judges_a_trial_by_its_best_epoch(values: tuple[float, ...], stopped: bool) -> None:
    study = optuna.create_study(pruner=SortedHalvingPruner(3))

    def decisions(values: tuple[float, ...]) -> list[bool]:
        trial, found = study.ask(), []
        for epoch, value in enumerate(values, 1):
            trial.report(value, epoch)
            found.append(trial.should_prune())
        return found

    for n in range(6):
        decisions((10.0 + n, 10.0 + n, 1.0 + n))
    assert decisions(values) == [False, False, stopped]
    # A process that resumes reads the best values of earlier trials: after one of 0.5, 1.5 is not in the best third.
    study.pruner = SortedHalvingPruner(3)
    assert decisions((9.0, 1.5, 9.0)) == [False, False, not stopped]


def test_halving_passes_all_rungs_that_a_first_report_reaches() -> None:
    def decisions(pruner: optuna.pruners.BasePruner) -> list[tuple[bool, dict[str, Any]]]:
        study, found = optuna.create_study(pruner=pruner), []
        for value in (3.0, 1.0, 2.0, 0.5, 4.0, 0.2):
            trial = study.ask()
            trial.report(value, 9)
            stopped = trial.should_prune()
            found.append((stopped, study.trials[-1].system_attrs))
            study.tell(trial, value)
        return found

    found = decisions(SortedHalvingPruner(3))
    assert {"completed_rung_0", "completed_rung_1", "completed_rung_2"} <= found[0][1].keys()
    assert found == decisions(optuna_s_pruner())


@pytest.mark.parametrize(("others", "epoch", "stopped"), [(4, 2, True), (3, 2, False), (4, 1, False)])
def test_median_waits_for_four_trials_and_a_second_epoch(others: int, epoch: int, stopped: bool) -> None:
    study = optuna.create_study(pruner=make_pruner(SweepSettings(pruner="median"), None))
    for _ in range(others):
        good = study.ask()
        for n in (1, 2):
            good.report(0.1, n)
        study.tell(good, 0.1)
    bad = study.ask()
    for n in range(1, epoch + 1):
        bad.report(5.0, n)
    assert bad.should_prune() == stopped


def test_hyperband_learns_the_epochs_of_a_trial_if_they_are_unknown() -> None:
    pruner = make_pruner(SweepSettings(pruner="hyperband"), None)
    assert isinstance(pruner, optuna.pruners.HyperbandPruner)
    study = optuna.create_study(pruner=pruner)
    for epochs in (9, 9):
        trial = study.ask()
        for epoch in range(1, epochs + 1):
            trial.report(1.0, epoch)
            trial.should_prune()
        study.tell(trial, 1.0)
    assert len(pruner._pruners) == 3  # 1, 3 and 9 epochs
