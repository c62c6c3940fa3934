"""tune.search.samplers: the same trials as with Optuna's own sampler and pruner, and what is forgotten beyond that."""

import math
import random
import warnings
from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState

from tune.search import samplers as flat
from tune.search.pruners import SortedHalvingPruner
from tune.search.samplers import RecentTPESampler

SETTINGS = {"n_startup_trials": 10, "multivariate": True, "group": True, "constant_liar": True, "seed": 3}


def loss(trial: optuna.Trial) -> float:
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    width = trial.suggest_int("width", 8, 64) if kind == "a" else 8
    return (math.log10(rate) + 3) ** 2 + width / 64


def studied(
    sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner, trials: int, spread: float = 1.0
) -> optuna.Study:
    """A study whose trials run side by side; some fail, and some are told NaN."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    noise = random.Random(0)
    running: list[tuple[optuna.Trial, float]] = []
    for _ in range(trials):
        asked = study.ask()
        running.append((asked, loss(asked) + spread * noise.random()))
        if len(running) < 2:
            continue
        trial, value = running.pop(0)
        if noise.random() < 0.05:
            study.tell(trial, state=TrialState.FAIL)
            continue
        run(study, trial, value, lambda: noise.random() < 0.02)
    return study


def run(study: optuna.Study, trial: optuna.Trial, value: float, is_nan: Callable[[], bool] = lambda: False) -> None:
    """Nine epochs, or as many as the pruner lets it have."""
    for epoch in range(1, 10):
        trial.report(math.nan if is_nan() else value + 1 / epoch, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, value)


def told(study: optuna.Study) -> list[tuple[object, ...]]:
    return [(t.params, t.state, str(t.value), str(t.intermediate_values), t.system_attrs) for t in study.trials]


def quiet_tpe(kind: type[optuna.samplers.TPESampler], **settings: object) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kind(**{**SETTINGS, **settings})  # type: ignore[arg-type]


def test_up_to_so_many_trials_all_is_as_with_optuna_s_own() -> None:
    own = studied(
        quiet_tpe(optuna.samplers.TPESampler),
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        150,
    )
    ours = studied(quiet_tpe(RecentTPESampler), SortedHalvingPruner(3), 150)
    assert {trial.state for trial in own.trials} >= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert told(ours) == told(own)


def test_a_pruner_that_begins_with_a_study_half_done_knows_its_rungs() -> None:
    def half(pruner: optuna.pruners.BasePruner) -> optuna.Study:
        study = studied(optuna.samplers.RandomSampler(seed=1), SortedHalvingPruner(3), 40)
        study.pruner = pruner
        for _ in range(40):
            trial = study.ask()
            run(study, trial, loss(trial))
        return study

    own = half(optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3))
    assert told(half(SortedHalvingPruner(3))) == told(own)


def test_beyond_that_the_best_and_the_latest_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_RECENT", 30)
    sampler = quiet_tpe(RecentTPESampler)
    study = studied(sampler, optuna.pruners.NopPruner(), 120, spread=0.1)
    assert isinstance(sampler, RecentTPESampler)
    seen = sampler._seen(study)._get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    best = sorted(complete, key=lambda trial: trial.value or 0.0)[: flat._GOOD]
    assert {trial.number for trial in best} <= {trial.number for trial in seen}
    assert {trial.number for trial in complete if trial.number >= 90} <= {trial.number for trial in seen}
    assert len(seen) <= 30 + flat._GOOD
    # It still learns: the later half is nearer to the optimum than random draws, whose mean is 1.
    late = [abs(math.log10(trial.params["rate"]) + 3) for trial in study.trials[60:]]
    assert sum(late) / len(late) < 0.8
