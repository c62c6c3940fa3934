"""Queries on the finished trials of a study, ranked by ``val/loss``."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune.search.study import METRIC

__all__ = ["best_trial", "complete_trials", "ended_trials", "ranked", "trial_loss"]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the lowest ``val/loss``, or None if no trial is complete."""
    return next(iter(ranked(study)), None)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials, by increasing ``val/loss``."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: trial_loss(trial) or 0.0)


def complete_trials(study: optuna.Study) -> list[tuple[float, int]]:
    """Return (``val/loss``, number) of each complete trial, by increasing ``val/loss``."""
    return [(trial_loss(trial) or 0.0, trial.number) for trial in ranked(study)]


def ended_trials(study: optuna.Study) -> list[int]:
    """Return the numbers of the trials that are complete, pruned or failed."""
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def trial_loss(trial: FrozenTrial) -> float | None:
    """Return the ``val/loss`` of a trial, also if the study has several objectives; None if it has no value."""
    if trial.values is not None and len(trial.values) > 1:
        value: float | None = trial.user_attrs.get("metrics", {}).get(METRIC)
        return value
    return trial.value
