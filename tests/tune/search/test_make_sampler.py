"""tune.search.samplers.make_sampler: seeds, the trials before a sampler learns, and silence about choices."""

import warnings
from typing import Any

import optuna
import pytest

from tune.config.sweep_settings import SweepSettings
from tune.search.samplers import ReplayedCmaEsSampler, make_sampler

QUIET: dict[str, Any] = {"warn_independent_sampling": False}
TPE: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}


def own(sampler: str, seed: int, startup: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler in ("random", "grid"):
            return optuna.samplers.RandomSampler(seed=seed)
        if sampler == "qmc":
            return optuna.samplers.QMCSampler(seed=seed, scramble=True, **QUIET)
        if sampler == "cmaes":
            return ReplayedCmaEsSampler(seed=seed, n_startup_trials=startup, **QUIET)  # its seeds differ from Optuna's
        if sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, **QUIET)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, **TPE)


def draws(sampler: optuna.samplers.BaseSampler, trials: int, at_a_time: int = 1) -> list[dict[str, Any]]:
    """Return what a study draws, whose every second trial has a setting more."""
    study = optuna.create_study(sampler=sampler)
    running, found = [], []
    for number in range(trials):
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 2)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        if number % 2:
            trial.suggest_int("width", 1, 64)
        found.append(trial.params)
        running.append((trial, (x - 0.3) ** 2 + (y - 1) ** 2 + (kind == "a")))
        if len(running) == at_a_time:
            study.tell(*running.pop(0))
    return found


@pytest.mark.parametrize(
    ("sampler", "budget", "startup", "trials"),
    [
        ("random", 12, 0, 3),
        ("grid", 12, 0, 3),
        ("qmc", 12, 0, 3),
        ("cmaes", 12, 4, 11),
        ("gp", 6, 2, 4),
        ("tpe", 11, 4, 20),
        ("tpe", 90, 10, 20),
        ("tpe", None, 10, 20),
    ],
)
def test_samplers_draw_as_optuna_s_own_that_learn_after_a_third_of_the_budget_or_ten_trials(
    sampler: Any, budget: int | None, startup: int, trials: int, caplog: pytest.LogCaptureFixture
) -> None:
    hours = None if budget else 1.0
    settings = SweepSettings(sampler=sampler, trials=budget, hours=hours, seed=7)
    at_a_time = 3 if sampler == "tpe" else 1
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    try:
        found = draws(make_sampler(settings, 0), trials, at_a_time)
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(verbosity)
    assert caplog.messages == []  # of settings that a sampler draws independently
    assert found == draws(own(sampler, 7, startup), trials, at_a_time)


def test_a_resumed_sampler_has_a_seed_of_its_own_but_keeps_its_place_in_a_sequence() -> None:
    settings = SweepSettings(sampler="random", seed=2**32 - 2)
    assert draws(make_sampler(settings, 5), 2) == draws(own("random", 5 * 1_000_003 - 2, 0), 2)
    settings = SweepSettings(sampler="qmc", seed=7)
    assert draws(make_sampler(settings, 5), 2) == draws(own("qmc", 7, 0), 2)


def test_what_an_enqueued_trial_leaves_open_on_a_grid_is_drawn_at_random() -> None:
    assert isinstance(make_sampler(SweepSettings(sampler="grid"), 0), optuna.samplers.RandomSampler)
