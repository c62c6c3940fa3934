"""Optuna's TPE and successive halving, but one more trial costs the same whether there are a hundred or thousands.

Optuna's own look at all trials at each step. The study knows nothing of this: it goes on with Optuna's own as well.
"""

import math
from bisect import insort
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

__all__ = ["RecentTPESampler", "SortedHalvingPruner"]

_GOOD = 25  # trials at most that TPE takes for good ones: Optuna's ``default_gamma``
_RECENT = 250  # other trials that it learns from: enough for 25 good ones
_LEARNED = (TrialState.COMPLETE, TrialState.PRUNED)


class RecentTPESampler(TPESampler):
    """TPE that learns from the best trials of all and from the latest others.

    What it takes for good ones are the same as Optuna's; of the others, whose weights in Optuna's own fall with their
    age, it forgets the oldest. Up to 250 trials it draws exactly what Optuna's own would. One objective, minimised.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._has_seen_all = False
        self._good: list[tuple[tuple[float, ...], int]] = []  # the best trials: rank and number
        self._unranked: list[int] = []  # numbers of trials that had not ended when they were looked at
        self._looked_at = 0  # so many trials

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Of all trials at first; Optuna's own keeps what it saw, so that later the latest will do."""
        seen = self._seen(study) if self._has_seen_all else study
        self._has_seen_all = True
        return super().infer_relative_search_space(seen, trial)  # type: ignore[arg-type]

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's own would, were these the only trials."""
        return super().sample_relative(self._seen(study), trial, search_space)  # type: ignore[arg-type]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna's own would, were these the only trials."""
        seen = self._seen(study)
        return super().sample_independent(seen, trial, param_name, param_distribution)  # type: ignore[arg-type]

    def _seen(self, study: optuna.Study) -> "_Seen":
        trials = study.get_trials(deepcopy=False)  # by number
        unranked, self._unranked = [*self._unranked, *range(self._looked_at, len(trials))], []
        self._looked_at = len(trials)
        for number in unranked:
            if not trials[number].state.is_finished():
                self._unranked.append(number)
            elif trials[number].state in _LEARNED:
                insort(self._good, (_rank(trials[number]), number))
        del self._good[_GOOD:]
        latest = max(0, len(trials) - _RECENT)
        # Of the older ones those that are good ones among all, and whatever still runs.
        older = {number for number in (*self._unranked, *(n for _, n in self._good)) if number < latest}
        return _Seen(study, [trials[number] for number in sorted(older)] + trials[latest:])


class _Seen:
    """A study of which a sampler sees some trials alone."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def _rank(trial: FrozenTrial) -> tuple[float, ...]:
    """Complete ones by value, then pruned ones by how far they came: as Optuna's TPE ranks them."""
    if trial.state == TrialState.COMPLETE:
        return 0, 0, trial.values[0] if trial.values else math.inf
    step = trial.last_step
    if step is None:
        return 2, 0, 0
    value = trial.intermediate_values[step]
    return 1, -step, math.inf if math.isnan(value) else value


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
