"""The samplers of ``sweep.sampler``, among them TPE at a cost that does not grow with the study."""

import math
import warnings
from bisect import insort
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import CmaEsSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from tune.config.sweep_settings import SweepSettings

if TYPE_CHECKING:
    from cmaes import CMA  # imports scipy: half a second of each process that opens a study

__all__ = ["RecentTPESampler", "ReplayedCmaEsSampler", "make_sampler"]

_STARTUP_TRIALS = 10  # sampled at random before a sampler learns from them
_GOOD_TRIALS = 25  # most trials that TPE takes as good ones: Optuna's ``default_gamma``
_RECENT_TRIALS = 250  # latest trials that TPE learns from: enough for 25 good ones
_LEARNED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)


def make_sampler(settings: SweepSettings, trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of ``sweep.sampler``.

    Args:
        trials: number of trials in the study. The seed depends on it, so that the sampler of a resumed sweep does not
            repeat its first samples.
    """
    seed = (settings.seed + 1_000_003 * trials) % 2**32
    budget = settings.trials or 3 * _STARTUP_TRIALS
    # With Optuna's default of 10 a sweep of ten trials would be a random search.
    startup = min(_STARTUP_TRIALS, math.ceil(budget / 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.sampler in ("random", "grid"):  # on a grid it samples what an enqueued trial leaves open
            return optuna.samplers.RandomSampler(seed=seed)
        if settings.sampler == "cmaes":
            # CMA-ES samples choices and conditional settings at random.
            return ReplayedCmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if settings.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if settings.sampler == "qmc":
            # The study stores the position in the sequence, so the seed must not change.
            return optuna.samplers.QMCSampler(seed=settings.seed, scramble=True, warn_independent_sampling=False)
        # With several objectives all trials decide which are good ones, so Optuna's own sampler is used.
        kind = RecentTPESampler if len(settings.objectives) == 1 else optuna.samplers.TPESampler
        return kind(
            n_startup_trials=startup,
            # Conditional settings form groups of their own; without groups they would be sampled independently.
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )


class RecentTPESampler(TPESampler):
    """TPE that learns from the best trials of the study and from the latest others, at a constant cost.

    Its good trials are those of Optuna's ``TPESampler``. Of the others, whose weights decrease with their age in
    ``TPESampler``, it drops the oldest. Up to 250 trials it samples exactly what ``TPESampler`` would, but with
    Hyperband it learns from the trial's bracket alone, where ``TPESampler`` of Optuna 5.0 learns from all trials. For
    studies with one objective, which is minimised.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._inferred: set[int | None] = set()  # brackets whose search space was inferred from all of their trials
        self._good: list[tuple[tuple[float, ...], int]] = []  # (rank, number) of the best trials
        self._unfinished: list[int] = []  # numbers of trials that were not finished at the last call
        self._known_trials = 0  # number of trials at the last call

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Infer the search space from all trials at the first call, then from the visible ones.

        ``TPESampler`` keeps what it has inferred, so that the visible trials are enough afterwards.
        """
        bracket = _bracket(study)
        visible = self._visible(study) if bracket in self._inferred else study
        self._inferred.add(bracket)
        return super().infer_relative_search_space(visible, trial)  # type: ignore[arg-type]

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample as ``TPESampler`` would if the study held only the visible trials."""
        return super().sample_relative(self._visible(study), trial, search_space)  # type: ignore[arg-type]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample as ``TPESampler`` would if the study held only the visible trials."""
        visible = self._visible(study)
        return super().sample_independent(visible, trial, param_name, param_distribution)  # type: ignore[arg-type]

    def _visible(self, study: optuna.Study) -> "_PartialStudy":
        """Return a view of the study with the best, the latest and the unfinished trials."""
        trials = study.get_trials(deepcopy=False)  # by number
        if _bracket(study) is not None:
            return _PartialStudy(study, _recent(trials))
        unfinished, self._unfinished = [*self._unfinished, *range(self._known_trials, len(trials))], []
        self._known_trials = len(trials)
        for number in unfinished:
            if not trials[number].state.is_finished():
                self._unfinished.append(number)
            elif trials[number].state in _LEARNED_STATES:
                insort(self._good, (_rank(trials[number]), number))
        del self._good[_GOOD_TRIALS:]
        latest = max(0, len(trials) - _RECENT_TRIALS)
        older = {number for number in (*self._unfinished, *(n for _, n in self._good)) if number < latest}
        return _PartialStudy(study, [trials[number] for number in sorted(older)] + trials[latest:])


class ReplayedCmaEsSampler(CmaEsSampler):
    """CMA-ES whose state follows from the study's trials.

    Optuna's ``CmaEsSampler`` keeps its state in the study as a pickle, which whoever can write to the study could
    replace by code of their own. Here it is in memory, and the generations of a study that is resumed are replayed.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._states: dict[int | None, CMA] = {}  # by Hyperband's bracket
        self._current: int | None = None
        self._past: list[FrozenTrial] = []

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample as ``CmaEsSampler`` does."""
        self._current = _bracket(study)
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> "CMA | None":
        self._past = completed_trials
        return self._states.get(self._current)

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        return {}  # nothing is stored in the study

    def _init_optimizer(self, trans: Any, direction: optuna.study.StudyDirection) -> "CMA":
        state = super()._init_optimizer(trans, direction)
        names = set(trans._search_space)
        past = [trial for trial in self._past if names <= trial.params.keys()]
        while len(told := self._get_solution_trials(past, state.generation)) >= state.population_size:
            state.tell([(trans.transform(t.params), t.value) for t in told[: state.population_size]])
        self._states[self._current] = state
        return state


class _PartialStudy:
    """A study of which only ``trials`` are visible to a sampler."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def _bracket(study: optuna.Study) -> int | None:
    """Return the bracket whose trials alone Hyperband shows to a sampler as ``study``; None if it shows all trials.

    The numbers of a bracket's trials have gaps, and a bracket may lose trials once Hyperband knows how many brackets
    there are.
    """
    bracket: int | None = getattr(study, "_bracket_id", None)
    return bracket


def _recent(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the best, the latest and the unfinished ones of ``trials``, which are by number."""
    older, latest = trials[:-_RECENT_TRIALS], trials[-_RECENT_TRIALS:]
    if not older:
        return latest
    good = sorted((trial for trial in trials if trial.state in _LEARNED_STATES), key=_rank)[:_GOOD_TRIALS]
    numbers = {trial.number for trial in good}
    return [trial for trial in older if trial.number in numbers or not trial.state.is_finished()] + latest


def _rank(trial: FrozenTrial) -> tuple[float, ...]:
    """Return the sort key of ``TPESampler``: complete trials by value, then pruned ones from late to early steps."""
    if trial.state == TrialState.COMPLETE:
        return 0, 0, trial.values[0] if trial.values else math.inf
    step = trial.last_step
    if step is None:
        return 2, 0, 0
    value = trial.intermediate_values[step]
    return 1, -step, math.inf if math.isnan(value) else value
