"""TODO."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune.search.study import METRIC

__all__ = ["best_trial", "complete_trials", "ended_trials", "ranked"]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of the lowest ``val/loss``, or None while none is complete."""
    return next(iter(ranked(study)), None)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, that of the lowest ``val/loss`` first."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: trial_loss(trial) or 0.0)


def complete_trials(study: optuna.Study) -> list[tuple[float, int]]:
    """``val/loss`` and number of each complete trial, the best first."""
    return [(trial_loss(trial) or 0.0, trial.number) for trial in ranked(study)]


def ended_trials(study: optuna.Study) -> list[int]:
    """The numbers of the trials that have ended, however."""
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def trial_loss(trial: FrozenTrial) -> float | None:
    """The ``val/loss``, whatever the objectives are."""
    if trial.values is not None and len(trial.values) > 1:
        value: float | None = trial.user_attrs.get("metrics", {}).get(METRIC)
        return value
    return trial.value
