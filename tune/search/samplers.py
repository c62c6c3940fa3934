"""TODO."""

import math
import warnings
from bisect import insort
from collections.abc import Container
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from tune.config.sweep_settings import SweepSettings

__all__ = ["RecentTPESampler"]
_STARTUP_TRIALS = 10  # drawn at random before a sampler learns from them


def make_sampler(settings: SweepSettings, trials: int) -> optuna.samplers.BaseSampler:
    # After a resume a sampler must not draw again what it drew first: its seed depends on how many trials there are.
    seed = (settings.seed + 1_000_003 * trials) % 2**32
    budget = settings.trials or 3 * _STARTUP_TRIALS
    # The samplers' own default would make a sweep of ten trials a random search.
    startup = min(_STARTUP_TRIALS, math.ceil(budget / 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if settings.sampler == "cmaes":
            # Choices, and what is searched under a condition, it leaves to random draws.
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if settings.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if settings.sampler == "qmc":
            # Which point of the sequence is next, the study remembers: its seed stays.
            return optuna.samplers.QMCSampler(seed=settings.seed, scramble=True, warn_independent_sampling=False)
        # Of several objectives Optuna's own: which trials are good ones is then a matter of all of them.
        kind = RecentTPESampler if len(settings.objectives) == 1 else optuna.samplers.TPESampler
        return kind(
            n_startup_trials=startup,
            # Conditional settings make groups of their own; without this they would be drawn one by one.
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )


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
