"""Results of trials: what is known of a running one, how one ended, and the ranking by ``val/loss``."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune.config.sweep_settings import SweepSettings
from tune.search.study import METRIC, REPEAT_OF, RUN, SECONDS_PER_STEP

__all__ = [
    "Ending",
    "OpenTrial",
    "SeedMean",
    "TrialWatcher",
    "best_trial",
    "complete_trials",
    "ended_trials",
    "epoch_metrics",
    "ranked",
    "reopen",
    "seed_mean",
    "trial_loss",
]


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    An interrupted trial has not ended in the study: it stays running there and is handed out again by a resumed sweep.

    Args:
        value: its ``val/loss`` in the study.
        error: why it failed.
    """

    state: Literal["complete", "pruned", "failed", "interrupted"]
    value: float | None = None
    error: str | None = None


@dataclass(eq=False)
class OpenTrial:
    """What a ledger knows of a trial that has not ended."""

    trial: optuna.Trial
    gpus: float
    epoch: int = 0  # last reported one
    best: float = math.inf  # lowest val/loss
    has_process: bool = False
    pruned: bool = False
    interrupted: bool = False
    failure: str | None = None
    process_death: str | None = None  # why its last process died; the trial may continue in another one
    retried: bool = False  # with more GPU memory


def reopen(study: optuna.Study, trial: FrozenTrial, settings: SweepSettings) -> OpenTrial:
    """Restore the state of a running trial from the study."""
    attributes, reopened = trial.user_attrs, optuna.Trial(study, trial._trial_id)
    gpus, epochs = float(attributes.get("gpus", settings.gpus)), int(attributes.get("epochs", trial.last_step or 0))
    best = float(attributes.get("metrics", {}).get(METRIC, math.inf))
    return OpenTrial(reopened, gpus, epochs, best, retried="gpus" in attributes)


class TrialWatcher:
    """What a ledger tells of trials while they run; this one ignores it."""

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Take note of a trial that is handed out, perhaps again."""

    def improved(self, number: int, epoch: int, scores: Mapping[str, float]) -> None:
        """Take note of a trial's best epoch so far."""

    def reported(self, number: int) -> None:
        """Take note of an epoch that a trial has reported."""

    def warned(self, line: str) -> None:
        """Take note of a trial's line about a logger that failed."""


@dataclass(frozen=True)
class SeedMean:
    """The ``val/loss`` of settings that were trained with several seeds.

    Args:
        mean, std: of their complete trials; the standard deviation is that of a sample.
        trials: the complete trials, by increasing ``val/loss``.
    """

    mean: float
    std: float
    trials: tuple[FrozenTrial, ...]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the lowest ``val/loss``, or None if no trial is complete.

    With ``sweep.repeats`` it is the best one of the settings with the lowest mean.
    """
    return next(iter(ranked(study)), None)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Return the best complete trial of each setting, by increasing ``val/loss``.

    Settings that were trained with several seeds are ranked by their mean, before those with fewer seeds.
    """
    means = sorted(_seed_means(study), key=lambda found: (-len(found.trials), found.mean))
    return [found.trials[0] for found in means]


def seed_mean(study: optuna.Study, trial: FrozenTrial) -> SeedMean | None:
    """Return the mean over the seeds of a complete trial's settings; None if only one seed is complete."""
    of_trial = [found for found in _seed_means(study) if trial.number in {other.number for other in found.trials}]
    return next((found for found in of_trial if len(found.trials) > 1), None)


def _seed_means(study: optuna.Study) -> list[SeedMean]:
    """Return the mean of each setting's complete trials, in the order of their first trials."""
    groups: dict[tuple[int, Any], list[FrozenTrial]] = defaultdict(list)
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE:
            # A repeat that waited while the run or the space was changed has other settings than its first trial.
            first, run = trial.user_attrs.get(REPEAT_OF, trial.number), trial.user_attrs.get(RUN)
            groups[first, (run, tuple(sorted(trial.params.items())))].append(trial)
    found = []
    for trials in groups.values():
        losses = [_loss_to_rank(trial) for trial in trials]
        std = statistics.stdev(losses) if len(losses) > 1 else 0.0
        found.append(SeedMean(statistics.fmean(losses), std, tuple(sorted(trials, key=_loss_to_rank))))
    return found


def complete_trials(study: optuna.Study) -> list[tuple[float, int]]:
    """Return (``val/loss``, number) of each complete trial, by increasing ``val/loss``."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    return [(_loss_to_rank(trial), trial.number) for trial in sorted(complete, key=_loss_to_rank)]


def ended_trials(study: optuna.Study) -> list[int]:
    """Return the numbers of the trials that are complete, pruned or failed."""
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def trial_loss(trial: FrozenTrial) -> float | None:
    """Return the ``val/loss`` of a trial, also if the study has several objectives; None if it has no value."""
    if trial.values is not None and len(trial.values) > 1:
        value: float | None = trial.user_attrs.get("metrics", {}).get(METRIC)
        return value
    return trial.value


def _loss_to_rank(trial: FrozenTrial) -> float:
    return trial_loss(trial) or 0.0


def epoch_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of an epoch; the entries that Ray adds to a result have no slash in their names."""
    found = {
        name: float(value)
        for name, value in result.items()
        if "/" in name and not name.startswith("config/") and isinstance(value, int | float)
    }
    rate = found.get("train/steps_per_second", 0.0)
    return {**found, SECONDS_PER_STEP: 1 / rate} if rate else found
