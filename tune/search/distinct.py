"""Settings that no trial has yet: repeats are replaced by new draws, and a finite space is worked off to its end."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import _filter_study
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.config.settings import RunConfig, result_settings
from nuanced_core.hashing import content_key
from tune.config.space import MOST_COUNTED, Space
from tune.config.sweep_settings import SweepSettings

__all__ = ["DistinctDraws", "base_key"]

_REDRAWS = 4  # by the sampler, before a setting is chosen at random
_RANDOM_DRAWS = 100  # in a space with too many settings to count


def base_key(run: RunConfig) -> str:
    """Return a key of everything in ``run`` that results depend on: the same settings on another run are no repeat."""
    return content_key(result_settings(run.model_dump(mode="json")))[:16]


class DistinctDraws:
    """Draws each trial's settings with the study's sampler, so that no two trials have the same.

    Args:
        trials: those that the study holds already, on the same run.
    """

    def __init__(self, space: Space, settings: SweepSettings, trials: Iterable[FrozenTrial]) -> None:
        self._space, self._settings = space, settings
        self._tried: set[str] = set()
        everything = space.all_params(MOST_COUNTED)
        if everything is not None:
            random.Random(settings.seed).shuffle(everything)
        self.size = None if everything is None else len(everything)  # of the space; None if it cannot be counted
        self._untried = None if everything is None else {_key(params): params for params in everything}
        for trial in trials:
            if trial.state != TrialState.WAITING and "params" in trial.user_attrs:
                self._mark(trial.user_attrs["params"])

    @property
    def tried(self) -> int:
        """The number of different settings of the space that have been tried."""
        return len(self._tried) if self.size is None else self.size - len(self._untried or ())

    @property
    def used_up(self) -> bool:
        """Whether every setting of the space has been tried."""
        return self._untried is not None and not self._untried

    def suggest(self, study: optuna.Study, trial: optuna.Trial) -> dict[str, Any]:
        """Return the settings of a trial that was asked for: by dotted name, those that the trial searches.

        Settings that were enqueued are kept, even if a trial has had them.

        Raises:
            ConfigError: an enqueued value is no longer allowed.
        """
        fixed = {**trial._fixed_params, **trial.params}  # a killed driver stores a part
        params = self._next_on_grid() if self._settings.sampler == "grid" and not fixed else None
        params = params or self._draw(_Draft(study, trial, fixed), trial.number)
        # What is fixed is stored instead of a suggestion.
        trial._fixed_params = self._space.as_stored(params, "search")
        params = self._space.suggest(trial)
        self._mark(params)
        return params

    def _draw(self, draft: "_Draft", number: int) -> dict[str, Any]:
        params = self._space.suggest(draft)
        for _ in range(_REDRAWS):
            if self._is_new(params) or draft.fixed.keys() >= params.keys():
                return params
            draft.draw_again()
            params = self._space.suggest(draft)
        if self._is_new(params):
            return params
        if self._untried is not None:
            left = list(self._untried.values())
            if draft.fixed:
                left = [params for params in left if self._agrees(params, draft.fixed)]
            return random.Random(self._settings.seed + number).choice(left) if left else params
        draft.sampler = optuna.samplers.RandomSampler(seed=self._settings.seed + number)
        for _ in range(_RANDOM_DRAWS):
            draft.draw_again()
            params = self._space.suggest(draft)
            if self._is_new(params):
                break
        return params

    def _agrees(self, params: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
        """Return whether ``params`` has every searched setting of ``fixed``, which has them as Optuna stores them."""
        stored = self._space.as_stored(params, "search")
        return all(name in stored and stored[name] == v for name, v in fixed.items() if name in self._space.dimensions)

    def _next_on_grid(self) -> dict[str, Any] | None:
        return next(iter((self._untried or {}).values()), None)

    def _is_new(self, params: Mapping[str, Any]) -> bool:
        return _key(params) not in self._tried

    def _mark(self, params: Mapping[str, Any]) -> None:
        key = _key({name: value for name, value in params.items() if name in self._space.dimensions})
        self._tried.add(key)
        if self._untried is not None:
            self._untried.pop(key, None)


class _Draft:
    """Suggests as ``trial`` would, but stores nothing, so that other values can be drawn."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial, fixed: Mapping[str, Any]) -> None:
        self._trial, self.fixed = trial, fixed
        self._frozen = study._storage.get_trial(trial._trial_id)
        self._study = _filter_study(study, self._frozen)
        self.sampler = study.sampler
        self._relative: dict[str, Any] | None = None

    def draw_again(self) -> None:
        space = self.sampler.infer_relative_search_space(self._study, self._frozen)
        self._relative = self.sampler.sample_relative(self._study, self._frozen, space)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        value: int = self._suggest(name, IntDistribution(low, high, log, step))
        return value

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value: float = self._suggest(name, FloatDistribution(low, high, log, step))
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self.fixed:
            return self.fixed[name]
        if isinstance(distribution, CategoricalDistribution) and distribution.single():
            return distribution.choices[0]
        # Sampled now at the earliest, as Optuna does: a trial whose settings are all fixed samples nothing.
        relative = self._trial.relative_params if self._relative is None else self._relative
        if name in relative and distribution._contains(distribution.to_internal_repr(relative[name])):
            return relative[name]
        return self.sampler.sample_independent(self._study, self._frozen, name, distribution)


def _key(params: Mapping[str, Any]) -> str:
    """Return a text that is the same for the same settings, also if floats differ by rounding."""
    rounded = {name: f"{value:.12g}" if isinstance(value, float) else value for name, value in params.items()}
    return json.dumps(rounded, sort_keys=True)
