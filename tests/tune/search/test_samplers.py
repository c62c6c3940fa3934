"""tune.search.samplers: the sampler of each setting, and the TPE of recent trials compared with Optuna's own."""

import math
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from nuanced_core.config.settings import RunConfig
from tests.tune.search.ledgers import SEARCH, ledger, result
from tests.tune.search.studies import contents, loss, run_study, run_trial
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings
from tune.search import samplers
from tune.search.ledger import TrialLedger
from tune.search.pruners import SortedHalvingPruner
from tune.search.samplers import RecentTPESampler, ReplayedCmaEsSampler, make_sampler
from tune.search.study import open_study

SETTINGS = {"n_startup_trials": 10, "multivariate": True, "group": True, "constant_liar": True, "seed": 3}


def make_tpe(kind: type[optuna.samplers.TPESampler]) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(**SETTINGS)  # type: ignore[arg-type]


def test_tpe_samples_as_optuna_s_own_up_to_250_trials() -> None:
    own = run_study(
        make_tpe(optuna.samplers.TPESampler),
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        150,
    )
    ours = run_study(make_tpe(RecentTPESampler), SortedHalvingPruner(3), 150)
    assert {trial.state for trial in own.trials} >= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert contents(ours) == contents(own)


def test_tpe_learns_from_the_best_and_the_latest_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "_RECENT_TRIALS", 30)
    sampler = make_tpe(RecentTPESampler)
    study = run_study(sampler, optuna.pruners.NopPruner(), 120, spread=0.1)
    assert isinstance(sampler, RecentTPESampler)
    visible = sampler._visible(study)._get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    best = sorted(complete, key=lambda trial: trial.value or 0.0)[: samplers._GOOD_TRIALS]
    assert {trial.number for trial in best} <= {trial.number for trial in visible}
    assert {trial.number for trial in complete if trial.number >= 90} <= {trial.number for trial in visible}
    assert len(visible) <= 30 + samplers._GOOD_TRIALS
    # It still learns: the second half is closer to the optimum than random samples, whose mean distance is 1.
    late = [abs(math.log10(trial.params["rate"]) + 3) for trial in study.trials[60:]]
    assert sum(late) / len(late) < 0.8


def _distance(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", -5, 5) - 2) ** 2 + (trial.suggest_float("y", 1e-4, 1, log=True) - 0.1) ** 2


def test_cmaes_has_the_state_of_optuna_s_own_and_keeps_it_out_of_the_study() -> None:
    own = optuna.create_study(sampler=optuna.samplers.CmaEsSampler(seed=1, n_startup_trials=4))
    own.optimize(_distance, n_trials=50)
    ours = optuna.create_study(sampler=ReplayedCmaEsSampler(seed=1, n_startup_trials=4))
    ours.add_trials(own.trials)
    for study in (own, ours):
        study.optimize(_distance, n_trials=1)
    expected, found = own.sampler._restore_optimizer(own.trials), ours.sampler._states[None]  # type: ignore[attr-defined]
    assert found.generation == expected.generation > 5
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found._C, expected._C)
    ours.optimize(_distance, n_trials=20)
    assert found.generation > expected.generation
    assert not any("optimizer" in name for trial in ours.trials[50:] for name in trial.system_attrs)


def test_cmaes_of_a_resumed_study_has_the_state_that_it_had() -> None:
    study = optuna.create_study(sampler=ReplayedCmaEsSampler(seed=1, n_startup_trials=4))
    study.optimize(_distance, n_trials=50)
    resumed = optuna.create_study(sampler=ReplayedCmaEsSampler(seed=5, n_startup_trials=4))
    resumed.add_trials(study.trials)
    resumed.optimize(_distance, n_trials=1)
    study.optimize(_distance, n_trials=1)
    before, after = (s.sampler._states[None] for s in (study, resumed))  # type: ignore[attr-defined]
    assert after.generation == before.generation > 5
    np.testing.assert_allclose(after.mean, before.mean)
    np.testing.assert_allclose(after._C, before._C)


@pytest.mark.parametrize(("kind", "is_run"), [(optuna.samplers.CmaEsSampler, True), (ReplayedCmaEsSampler, False)])
def test_cmaes_unpickles_nothing_that_the_study_holds(
    kind: type[optuna.samplers.CmaEsSampler], is_run: bool, tmp_path: Path
) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "owned").touch, ()

    study = optuna.create_study(sampler=kind(seed=1, n_startup_trials=2))
    study.optimize(_distance, n_trials=2)
    state = {"cma:optimizer:0": pickle.dumps(Hostile()).hex()}
    last = study.trials[-1]
    study.add_trial(
        optuna.create_trial(params=last.params, distributions=last.distributions, value=1.0, system_attrs=state)
    )
    with suppress(AttributeError):  # of what is not an optimizer
        study.optimize(_distance, n_trials=1)
    assert (tmp_path / "owned").exists() == is_run


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        ("random", optuna.samplers.RandomSampler),
        ("cmaes", ReplayedCmaEsSampler),
        ("gp", optuna.samplers.GPSampler),
        ("qmc", optuna.samplers.QMCSampler),
        ("tpe", RecentTPESampler),
    ],
)
def test_each_setting_has_its_sampler(sampler: Any, kind: type[optuna.samplers.BaseSampler]) -> None:
    assert type(make_sampler(SweepSettings(sampler=sampler), 0)) is kind


def test_several_objectives_are_sampled_by_optuna_s_own_tpe() -> None:
    settings = SweepSettings(objectives=("val/stft", "val/style"), pruner="none")
    assert type(make_sampler(settings, 0)) is optuna.samplers.TPESampler


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_the_first_samples_depend_on_the_seed_alone(sampler: Any) -> None:
    def first(seed: int) -> float:
        study = optuna.create_study(sampler=make_sampler(SweepSettings(sampler=sampler, seed=seed), 0))
        return study.ask().suggest_float("x", 0.0, 1.0)

    assert first(1) == first(1) != first(2)


def test_a_resumed_sampler_does_not_repeat_its_samples(tmp_path: Path) -> None:
    drawn = []
    for _ in range(4):
        book = ledger(tmp_path, budget=4)
        asked = book.ask()
        assert asked is not None
        drawn.append(asked["params"]["train.learning_rate"])
        book.report(asked["number"], result(1, 1.0))
        book.end(asked["number"])
    assert len(set(drawn)) == 4


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


def test_what_is_recent_holds_the_best_and_the_unfinished_of_the_older_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hyperband's brackets see them, whose trials have gaps in their numbers."""
    monkeypatch.setattr(samplers, "_RECENT_TRIALS", 3)
    monkeypatch.setattr(samplers, "_GOOD_TRIALS", 2)
    study = optuna.create_study()
    study.ask()  # 0 is unfinished
    for value in (5.0, 1.0, 4.0, 2.0, 3.0, 0.5, 6.0):
        study.add_trial(optuna.create_trial(value=value))
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    found = samplers._recent(study.trials)
    assert [trial.number for trial in found] == [0, 2, 6, 7, 8]  # 2 and 6 are the best ones
    assert samplers._recent(study.trials[:3]) == study.trials[:3]


def test_cmaes_has_a_state_for_each_of_hyperband_s_brackets() -> None:
    sampler = ReplayedCmaEsSampler(seed=1, n_startup_trials=2)
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3)
    study = optuna.create_study(study_name="brackets", sampler=sampler, pruner=pruner)
    for _ in range(40):
        trial = study.ask()
        value = _distance(trial)
        trial.report(value, 1)
        trial.should_prune()
        study.tell(trial, value)
    assert {0, 1, 2} <= sampler._states.keys()


def test_tpe_learns_from_the_trials_of_one_of_hyperband_s_brackets() -> None:
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3)
    sampler = make_tpe(RecentTPESampler)
    study = optuna.create_study(study_name="brackets", sampler=sampler, pruner=pruner)
    for _ in range(60):
        trial = study.ask()
        run_trial(study, trial, loss(trial))
    of_bracket: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for trial in study.trials:
        of_bracket[pruner._get_bracket_id(study, trial)].append(trial.number)
    assert isinstance(sampler, RecentTPESampler) and all(of_bracket.values())
    for numbers in of_bracket.values():
        visible = sampler._visible(optuna.pruners._filter_study(study, study.trials[numbers[0]]))
        assert [trial.number for trial in visible._get_trials()] == numbers
        complete = visible._get_trials(states=(TrialState.COMPLETE,))
        assert complete and {trial.state for trial in complete} == {TrialState.COMPLETE}


def test_tpe_infers_the_space_from_trials_that_it_no_longer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "_RECENT_TRIALS", 3)
    monkeypatch.setattr(samplers, "_GOOD_TRIALS", 2)
    x, y = optuna.distributions.FloatDistribution(0, 1), optuna.distributions.FloatDistribution(0, 2)
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=9.0, params={"x": 0.5, "y": 1.0}, distributions={"x": x, "y": y}))
    for _ in range(8):
        study.add_trial(optuna.create_trial(value=1.0, params={"x": 0.5}, distributions={"x": x}))
    sampler = make_tpe(RecentTPESampler)
    for _ in range(3):
        asked = study._storage.get_trial(study.ask()._trial_id)
        assert sampler.infer_relative_search_space(study, asked) == {"x": x, "y": y}


def test_good_trials_are_complete_ones_then_those_that_were_pruned_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def pruned(step: int | None, value: float = 0.0) -> optuna.trial.FrozenTrial:
        values = {} if step is None else {step: value}
        return optuna.create_trial(state=TrialState.PRUNED, intermediate_values=values)

    study = optuna.create_study()
    study.add_trials(
        [pruned(None), pruned(2, 1.0), pruned(7, math.nan), pruned(7, 5.0), pruned(7, 4.0), pruned(1, -9.0)]
        + [optuna.create_trial(value=value) for value in (8.0, 6.0)]
        + [optuna.create_trial(state=TrialState.FAIL)] * 3
    )
    monkeypatch.setattr(samplers, "_RECENT_TRIALS", 3)
    for count, best in enumerate(([7], [7, 6], [7, 6, 4], [7, 6, 4, 3], [7, 6, 4, 3, 2], [7, 6, 4, 3, 2, 1]), 1):
        monkeypatch.setattr(samplers, "_GOOD_TRIALS", count)
        assert [trial.number for trial in samplers._recent(study.trials)][:-3] == sorted(best)
    monkeypatch.setattr(samplers, "_GOOD_TRIALS", 7)
    assert 0 not in {trial.number for trial in samplers._recent(study.trials)}  # it has no value at all
