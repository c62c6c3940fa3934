"""The pruners of ``sweep.pruner``, among them successive halving at a constant cost for each epoch."""

import math
import warnings
from bisect import insort
from collections.abc import Sequence

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import FrozenTrial

from tune.config.sweep_settings import SweepSettings

__all__ = ["SortedHalvingPruner", "make_pruner"]

# Rungs at 1, 3, 9, … epochs; a third of the trials is promoted from each.
_HALVING_REDUCTION = 3
_MEDIAN_STARTUP_TRIALS = 4
_MEDIAN_WARMUP_EPOCHS = 1  # in which no trial is stopped


def make_pruner(settings: SweepSettings, epochs: int | None) -> optuna.pruners.BasePruner:
    """Return the pruner of ``sweep.pruner``.

    Args:
        epochs: epochs of a trial that is not stopped, from which Hyperband derives its brackets; None if unknown.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.pruner == "none":
            return optuna.pruners.NopPruner()
        if settings.pruner == "median":
            # Epochs are counted from 1; Optuna stops trials from step n_warmup_steps on.
            return optuna.pruners.MedianPruner(_MEDIAN_STARTUP_TRIALS, n_warmup_steps=_MEDIAN_WARMUP_EPOCHS + 1)
        if settings.pruner == "patience":
            return optuna.pruners.PatientPruner(None, settings.patience)
        if settings.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=epochs or "auto", reduction_factor=_HALVING_REDUCTION
            )
        return SortedHalvingPruner(_HALVING_REDUCTION)


class SortedHalvingPruner(SuccessiveHalvingPruner):
    """Successive halving by the best value so far of each trial, at a cost that does not grow with the study.

    A trial's result is that of its best epoch, whose checkpoint is kept, while Optuna's pruner judges by the latest
    epoch: its decisions are those of this one where no epoch is worse than the one before. The values of each rung are
    kept sorted instead of being collected from all trials at each epoch. Only one process may prune; the values of
    earlier processes are read from the study once, at the first epoch.

    Args:
        reduction: rung n is at ``reduction ** n`` epochs, and one in ``reduction`` trials is promoted from it.
    """

    def __init__(self, reduction: int) -> None:
        super().__init__(min_resource=1, reduction_factor=reduction)
        self._reduction = reduction
        self._rungs: list[list[float]] | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial's best value is not good enough to be promoted from a rung that it has reached.

        A trial whose last value is NaN has diverged, and is not promoted either.
        """
        step = trial.last_step
        if step is None:
            return False
        if self._rungs is None:
            self._rungs = _read_rungs(study.get_trials(deepcopy=False))
        rung = sum(_rung_key(n) in trial.system_attrs for n in range(len(self._rungs)))
        while step >= self._reduction**rung:
            if math.isnan(trial.intermediate_values[step]):
                return True
            value = min(v for v in trial.intermediate_values.values() if not math.isnan(v))
            study._storage.set_trial_system_attr(trial._trial_id, _rung_key(rung), value)
            if rung == len(self._rungs):
                self._rungs.append([])
            values = self._rungs[rung]
            insort(values, value)
            if value > values[max(len(values) // self._reduction - 1, 0)]:
                return True
            rung += 1
        return False


def _read_rungs(trials: Sequence[FrozenTrial]) -> list[list[float]]:
    """Return the sorted values of each rung."""
    found: list[list[float]] = []
    for trial in trials:
        rung = 0
        while (value := trial.system_attrs.get(_rung_key(rung))) is not None:
            if rung == len(found):
                found.append([])
            found[rung].append(value)
            rung += 1
    for values in found:
        values.sort()
    return found


def _rung_key(rung: int) -> str:
    """Return the system attribute in which Optuna's pruner stores a trial's value at a rung."""
    return f"completed_rung_{rung}"
