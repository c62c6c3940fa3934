"""The YAML search space: read and checked once, then suggested by Optuna and put into a run's settings.

A setting with a condition is searched only in trials where that holds, and keeps the run's own value in the others:

    encoder.pooling: [mean, attentive, queries]
    encoder.heads: {choices: [1, 2, 4], when: {encoder.pooling: [attentive, queries]}}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

import optuna

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import dotted_names, spelling_hint, validate
from nuanced_core.errors import ConfigError
from tune.config.dimension import Choices, Range, conditioned_on, flat_names, read_dimension, shares_trials

__all__ = ["Space"]

_SAME_OBJECTIVE = "every trial is compared by the same objective"
# What a search may not vary, by the beginning of its name, and why.
_FIXED = {
    "objective.": _SAME_OBJECTIVE,
    "data.val_": _SAME_OBJECTIVE,
    "data.max_phonemes": f"it decides which sentences validate, and {_SAME_OBJECTIVE}",
    "data.seed": f"it decides which sentences validate, and {_SAME_OBJECTIVE}",
    "models.source": "where files come from does not change what they are",
    "train.device": "sweep.gpus_per_trial decides where trials run",
}
# What must be fetched, rendered or heard before the first trial depends on these, so they have to be countable.
_PREPARED = ("models.", "data.", "mixes.", "augment.")


@dataclass(frozen=True)
class Space:
    """What a sweep varies: dotted settings of a run, each with its range or choices.

    Args:
        dimensions: what is searched; a condition looks only at settings that stand before its own.
        own: what the run says of the settings in conditions, which counts in trials that do not search them.
    """

    dimensions: Mapping[str, Range | Choices]
    own: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: Any, run: RunConfig, place: str) -> "Space":
        """The space that ``data`` describes; each bound and choice is tried on ``run``.

        A setting whose value is null is not searched, so a file can drop what the file it extends searches.

        Raises:
            ConfigError: a name is no setting of a run or may not vary, a value is not valid for it, or a
                condition cannot hold.
        """
        if data is not None and not isinstance(data, dict):
            raise ConfigError(f"{place}: search: {data!r}: not 'setting: range or choices' lines")
        names = list(dotted_names(RunConfig))
        found: dict[str, Range | Choices] = {}
        for name, value in flat_names(data or {}, names).items():
            if value is None:
                continue
            where = f"{place}: search.{name}"
            _check_name(name, names, where)
            found[name] = read_dimension(value, names, where)
            if name.startswith(_PREPARED) and isinstance(found[name], Range):
                raise ConfigError(f"{where}: a range; list its values, because each is prepared before the first trial")
        if not found:
            raise ConfigError(
                f"{place}: search: nothing is searched; add settings such as "
                "'train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}', or train it once with 'nuanced train'"
            )
        plain = run.model_dump(mode="json")
        others = [other for dimension in found.values() for other in conditioned_on(dimension)]
        space = cls(_in_order(found, place), {other: _section(plain, other)[_last(other)] for other in others})
        given: dict[str, dict[str, Any]] = {}
        for name, dimension in space.dimensions.items():
            given[name] = space._searched_given(name, given, f"{place}: search.{name}")
            for tried in dimension.tried:
                _substituted(run, given[name] | {name: tried}, f"{place}: search")
        return space

    def check_extends(self, before: "Space") -> None:
        """Refuse a change that Optuna cannot take: other choices of a setting, or a range in place of choices.

        Raises:
            ConfigError: one line that names the setting, what it was and what it would be.
        """
        for name, old in before.dimensions.items():
            new = self.dimensions.get(name)
            if new is not None and not shares_trials(old, new):
                raise ConfigError(
                    f"search.{name}: was {json.dumps(old.as_yaml())}, would be {json.dumps(new.as_yaml())}: trials "
                    f"so far cannot be learned from; keep it, drop it with --set search.{name}=null, or begin anew"
                )

    def enqueued(self, params: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Settings by dotted name as Optuna's ``enqueue_trial`` takes them.

        Raises:
            ConfigError: a setting is not searched, or may not have the value.
        """
        found: dict[str, Any] = {}
        for name, value in params.items():
            if name not in self.dimensions:
                raise ConfigError(f"{place}: {name}: is not searched; {spelling_hint(name, self.names)}")
            found[name] = self.dimensions[name].as_stored(value, f"{place}: {name}")
        return found

    @property
    def names(self) -> list[str]:
        """The dotted settings that are searched."""
        return list(self.dimensions)

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """The values that Optuna wants ``trial`` to try, by dotted setting: of those that it searches."""
        params: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            if self._is_searched(name, params):
                params[name] = dimension.suggest(trial, name)
        return params

    def apply(self, run: RunConfig, params: Mapping[str, Any]) -> RunConfig:
        """``run`` with ``params`` put in.

        Raises:
            ConfigError: the values contradict one another.
        """
        return _substituted(run, params, "search")

    def variants(self, run: RunConfig) -> list[RunConfig]:
        """The runs to prepare for: ``run`` with the choices that decide what is fetched, rendered and heard.

        ``features.layers`` multiplies nothing, since all layers are kept of what is heard; but each of its choices
        is in a run with each Whisper model, which may lack such a layer.

        Raises:
            ConfigError: values contradict one another.
        """
        combinations: list[dict[str, Any]] = [{}]
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Choices) and name.startswith((*_PREPARED, "features.layers")):
                combinations = [
                    params | chosen
                    for params in combinations
                    for chosen in ([{name: v} for v in dimension.values] if self._is_searched(name, params) else [{}])
                ]
        variants: list[RunConfig] = []
        covered: set[Any] = set()
        for params in combinations:
            one = self.apply(run, params)
            needs = {(one.models, one.data, one.mixes, one.augment), (one.models, one.features.layers)}
            if not needs <= covered:
                variants.append(one)
                covered |= needs
        return variants

    def as_dict(self) -> dict[str, Any]:
        """The space as plain values, in the form that ``parse`` reads."""
        return {name: dimension.as_yaml() for name, dimension in self.dimensions.items()}

    def _is_searched(self, name: str, params: Mapping[str, Any]) -> bool:
        """Whether a trial that has been given ``params`` searches ``name``."""
        when = self.dimensions[name].when
        values = {**self.own, **params}
        return not when or any(all(values[other] in v for other, v in condition.items()) for condition in when)

    def _searched_given(self, name: str, given: Mapping[str, dict[str, Any]], where: str) -> dict[str, Any]:
        """Some params with which a trial searches ``name``, from ``given``, those of the dimensions before it."""
        possible: list[dict[str, Any]] = []
        unmet: list[str] = []
        for condition in self.dimensions[name].when:
            params: dict[str, Any] = {}
            missed = [other for other, v in condition.items() if other not in given and self.own[other] not in v]
            for other, values in condition.items():
                if other in given:
                    self._check_condition(name, other, values, where)
                    params |= given[other] | {other: values[0]}
            possible += [] if missed else [params]
            unmet += missed
        if unmet and not possible:
            own = json.dumps(self.own[unmet[0]])
            raise ConfigError(
                f"{where}: would never be searched, because {unmet[0]} is {own} and not searched; search that too, "
                "or drop this"
            )
        return possible[0] if possible else {}

    def _check_condition(self, name: str, other: str, values: Sequence[Any], where: str) -> None:
        dimension = self.dimensions[other]
        if name.startswith(_PREPARED) and not other.startswith(_PREPARED):
            raise ConfigError(
                f"{where}.when.{other}: is searched, but what is prepared before the first trial may depend only on "
                f"settings of {', '.join(p.rstrip('.') for p in _PREPARED)}; drop this condition"
            )
        if isinstance(dimension, Range) and not dimension.whole:
            raise ConfigError(f"{where}.when.{other}: is searched in a range of fractions; list its choices instead")
        for value in values:
            is_own = bool(dimension.when) and value == self.own[other]
            if not is_own and not dimension.allows(value):
                raise ConfigError(
                    f"{where}.when.{other}: {json.dumps(value)}: never tried; search.{other} is {dimension.as_yaml()}"
                )


def _check_name(name: str, names: Sequence[str], where: str) -> None:
    for beginning, reason in _FIXED.items():
        if name.startswith(beginning):
            raise ConfigError(f"{where}: cannot be searched: {reason}")
    if name not in names:
        searchable = [n for n in names if not n.startswith(tuple(_FIXED))]
        raise ConfigError(f"{where}: unknown setting; {spelling_hint(name, searchable)}")


def _in_order(dimensions: Mapping[str, Range | Choices], place: str) -> dict[str, Range | Choices]:
    """``dimensions`` in their order, but each behind those that its conditions look at."""
    before = {name: [o for o in conditioned_on(d) if o in dimensions] for name, d in dimensions.items()}
    try:
        return {name: dimensions[name] for name in TopologicalSorter(before).static_order()}
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise ConfigError(f"{place}: search: conditions go in a circle: {circle}; drop one of them") from None


def _substituted(run: RunConfig, params: Mapping[str, Any], place: str) -> RunConfig:
    data = run.model_dump(mode="json")
    for name, value in params.items():
        _section(data, name)[_last(name)] = value
    return validate(RunConfig, data, place)


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Where in ``data`` the dotted ``name`` lies."""
    for section in name.split(".")[:-1]:
        data = data[section]
    return data


def _last(name: str) -> str:
    return name.rpartition(".")[2]
