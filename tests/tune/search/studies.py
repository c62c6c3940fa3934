"""Studies of a toy loss, which the tests of samplers and pruners compare with Optuna's own."""

import math
import random
from collections.abc import Callable

import optuna
from optuna.trial import TrialState


def loss(trial: optuna.Trial) -> float:
    """Suggest three parameters, one of them conditional, and return the loss, whose optimum is at rate 1e-3."""
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    width = trial.suggest_int("width", 8, 64) if kind == "a" else 8
    return (math.log10(rate) + 3) ** 2 + width / 64


def run_trial(
    study: optuna.Study, trial: optuna.Trial, value: float, is_nan: Callable[[], bool] = lambda: False
) -> None:
    """Run nine epochs, or until the pruner stops the trial."""
    for epoch in range(1, 10):
        trial.report(math.nan if is_nan() else value + 1 / epoch, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, value)


def run_study(
    sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner, trials: int, spread: float = 1.0
) -> optuna.Study:
    """Run a study with two trials at a time, of which some fail and some report NaN.

    Args:
        spread: of the uniform noise that is added to the loss.
    """
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
        run_trial(study, trial, value, lambda: noise.random() < 0.02)
    return study


def contents(study: optuna.Study) -> list[tuple[object, ...]]:
    """Return everything that a study stores of its trials, in a form that compares NaN as equal."""
    return [(t.params, t.state, str(t.value), str(t.intermediate_values), t.system_attrs) for t in study.trials]
