"""TODO."""

import math
import warnings
from bisect import insort
from collections.abc import Sequence

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import FrozenTrial

from tune.config.sweep_settings import SweepSettings

__all__ = ["SortedHalvingPruner"]

# Rungs at 1, 3, 9, … epochs; a third of the trials goes on from each.
_HALVING_REDUCTION = 3
_MEDIAN_STARTUP_TRIALS = 4
_MEDIAN_WARMUP_EPOCHS = 1


def make_pruner(settings: SweepSettings, epochs: int | None) -> optuna.pruners.BasePruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.pruner == "none":
            return optuna.pruners.NopPruner()
        if settings.pruner == "median":
            return optuna.pruners.MedianPruner(_MEDIAN_STARTUP_TRIALS, _MEDIAN_WARMUP_EPOCHS)
        if settings.pruner == "patience":
            return optuna.pruners.PatientPruner(None, settings.patience)
        if settings.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=epochs or "auto", reduction_factor=_HALVING_REDUCTION
            )
        return SortedHalvingPruner(_HALVING_REDUCTION)


class SortedHalvingPruner(SuccessiveHalvingPruner):
    """Optuna's own decisions, but each rung's values are kept sorted instead of collected anew at each epoch.

    One process prunes; what the study holds of earlier ones is read at the first epoch.
    """

    def __init__(self, reduction: int) -> None:
        super().__init__(min_resource=1, reduction_factor=reduction)
        self._reduction = reduction
        self._rungs: list[list[float]] | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's last value is too poor for the next rung that it has come to."""
        step = trial.last_step
        if step is None:
            return False
        if self._rungs is None:
            self._rungs = _rungs(study.get_trials(deepcopy=False))
        value = trial.intermediate_values[step]
        rung = sum(_key(n) in trial.system_attrs for n in range(len(self._rungs)))
        while step >= self._reduction**rung:
            if math.isnan(value):
                return True
            study._storage.set_trial_system_attr(trial._trial_id, _key(rung), value)
            if rung == len(self._rungs):
                self._rungs.append([])
            values = self._rungs[rung]
            insort(values, value)
            if value > values[max(len(values) // self._reduction - 1, 0)]:
                return True
            rung += 1
        return False


def _rungs(trials: Sequence[FrozenTrial]) -> list[list[float]]:
    found: list[list[float]] = []
    for trial in trials:
        rung = 0
        while (value := trial.system_attrs.get(_key(rung))) is not None:
            if rung == len(found):
                found.append([])
            found[rung].append(value)
            rung += 1
    for values in found:
        values.sort()
    return found


def _key(rung: int) -> str:
    """Where Optuna's own keeps a trial's value."""
    return f"completed_rung_{rung}"
