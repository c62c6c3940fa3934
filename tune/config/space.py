"""The search space of a sweep: parsed from YAML and checked, sampled by Optuna, applied to a run's settings.

A setting with a condition is searched only in trials in which the condition holds, and keeps the run's value in the
others:

    encoder.pooling: [mean, attentive, queries]
    encoder.heads: {choices: [1, 2, 4], when: {encoder.pooling: [attentive, queries]}}
"""

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import dotted_names, spelling_hint, validate
from nuanced_core.errors import ConfigError
from tune.config.dimension import (
    Choices,
    Range,
    Suggester,
    condition_settings,
    flatten_names,
    is_compatible,
    read_dimension,
    when_as_yaml,
)

__all__ = ["MOST_COUNTED", "SEED", "Space"]

SEED = "train.seed"  # the setting that sweep.repeats varies

MOST_COUNTED = 20_000  # settings of a space; a larger one is never worked off to its end

_SAME_OBJECTIVE = "every trial is compared by the same objective"
# Settings that cannot be searched, by name prefix, with the reason.
_NOT_SEARCHABLE = {
    "objective.": _SAME_OBJECTIVE,
    "data.val_": _SAME_OBJECTIVE,
    "data.max_phonemes": f"it decides which sentences are used for validation, and {_SAME_OBJECTIVE}",
    "data.seed": f"it decides which sentences are used for validation, and {_SAME_OBJECTIVE}",
    "data.people": f"it decides which people are used for validation, and {_SAME_OBJECTIVE}",
    "models.source": "where files come from does not change what they are",
    "show.": "what is shown of a run changes no result",
    "train.device": "sweep.gpus_per_trial decides where trials run",
}
# Models, clips and features are prepared before the first trial for every value of these settings, so the number of
# values has to be finite.
_PREPARED = ("models.", "data.", "mixes.", "augment.")
# Settings whose choices decide what else is prepared of the clips.
_HEARD = ("features.layers", "features.speaker", "features.pitch", "encoder.surrogate_steps", "loss.speaker_encoders")


@dataclass(frozen=True)
class Space:
    """The searched settings of a run, each with its range or choices.

    Args:
        dimensions: by dotted setting, in an order in which a condition depends only on earlier settings.
        run_values: the run's values of the settings in conditions, used in trials that do not search those settings.
    """

    dimensions: Mapping[str, Range | Choices]
    run_values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: Any, run: RunConfig, place: str) -> "Space":
        """Parse a space and validate each bound and choice as a setting of ``run``.

        A setting whose value is null is not searched, so that a file can drop a dimension of the file it extends.

        Args:
            data: the ``search`` section of a YAML file.
            place: the file, for error messages.

        Raises:
            ConfigError: a name is not a setting of a run or cannot be searched, a value is not valid for its setting,
                or a condition cannot hold.
        """
        if data is not None and not isinstance(data, dict):
            raise ConfigError(f"{place}: search: {data!r}: not 'setting: range or choices' lines")
        names = list(dotted_names(RunConfig))
        found: dict[str, Range | Choices] = {}
        for name, value in flatten_names(data or {}, names).items():
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
        others = [other for dimension in found.values() for other in condition_settings(dimension)]
        space = cls(_in_order(found, place), {other: _section(plain, other)[_last(other)] for other in others})
        required: dict[str, dict[str, Any]] = {}
        for name, dimension in space.dimensions.items():
            required[name] = space._required_params(name, required, f"{place}: search.{name}")
            for value in dimension.values_to_check:
                _substituted(run, required[name] | {name: value}, f"{place}: search")
        return space

    def check_can_continue(self, previous: "Space") -> None:
        """Check that Optuna can learn from trials of ``previous``: choices are unchanged, a range is still a range.

        Raises:
            ConfigError: one line that names the setting, its previous and its new dimension.
        """
        for name, old in previous.dimensions.items():
            new = self.dimensions.get(name)
            if new is not None and not is_compatible(old, new):
                raise ConfigError(
                    f"search.{name}: was {json.dumps(old.as_yaml())}, would be {json.dumps(new.as_yaml())}: the "
                    f"sampler cannot learn from the trials so far; keep it, drop it with --set search.{name}=null, or "
                    "start a new sweep"
                )

    @property
    def unlimited(self) -> list[str]:
        """The settings whose number of values has no limit: ranges of floats without a step."""
        return [name for name, dimension in self.dimensions.items() if dimension.all_values is None]

    def all_params(self, most: int) -> list[dict[str, Any]] | None:
        """Return everything that ``suggest`` can return, or None if that is more than ``most`` or has no limit."""
        if self.unlimited:
            return None
        found = list(islice(self._all_params({}, list(self.dimensions)), most + 1))
        return found if len(found) <= most else None

    def _all_params(self, params: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield ``params`` with each combination of values of the settings ``names`` that it does not have yet."""
        if not names:
            yield params
            return
        name, *rest = names
        if not self._is_searched(name, params):
            yield from self._all_params(params, rest)
            return
        for value in self.dimensions[name].all_values or ():
            yield from self._all_params({**params, name: value}, rest)

    def as_stored(self, params: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Convert settings by dotted name to the form that Optuna's ``enqueue_trial`` takes.

        Raises:
            ConfigError: a setting is not searched, or its value is not in its dimension.
        """
        found: dict[str, Any] = {}
        for name, value in params.items():
            if name not in self.dimensions:
                raise ConfigError(f"{place}: {name}: is not searched; {spelling_hint(name, self.names)}")
            found[name] = self.dimensions[name].as_stored(value, f"{place}: {name}")
        return found

    def unused(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings of ``params`` that a trial with these values need not search, each with the reason.

        Args:
            params: values of some searched settings; the others are sampled.
        """
        found: dict[str, str] = {}
        values: dict[str, Any] = {}
        sampled: set[str] = set()
        for name, dimension in self.dimensions.items():
            undecided = [other for other in condition_settings(dimension) if other in sampled]
            is_searched = self._is_searched(name, values, sampled)
            if name not in params:
                if is_searched or undecided:
                    sampled.add(name)
            elif is_searched:
                values[name] = params[name]
            else:
                when = json.dumps(when_as_yaml(dimension)["when"])
                fix = f"give {undecided[0]} too" if undecided else "leave it out, or change the other"
                found[name] = f"is searched only when {when}; {fix}"
        return found

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        """Return whether a trial with the values ``params`` searches exactly these settings, and all are allowed."""
        try:
            self.as_stored(params, "search")
        except ConfigError:
            return False
        return params.keys() == {name for name in self.dimensions if self._is_searched(name, params)}

    @property
    def names(self) -> list[str]:
        """The searched settings, by dotted name."""
        return list(self.dimensions)

    def suggest(self, trial: Suggester) -> dict[str, Any]:
        """Return Optuna's suggestions for ``trial``, by dotted setting, of the settings that the trial searches."""
        params: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            if self._is_searched(name, params):
                params[name] = dimension.suggest(trial, name)
        return params

    def apply(self, run: RunConfig, params: Mapping[str, Any]) -> RunConfig:
        """Return ``run`` with the settings of ``params`` replaced.

        Raises:
            ConfigError: the values contradict each other.
        """
        return _substituted(run, params, "search")

    def variants(self, run: RunConfig) -> list[RunConfig]:
        """Return the runs to prepare: ``run`` with each combination of choices that needs other models or data.

        ``features.layers`` adds no combinations, because the cache holds the features of all layers; but each of its
        choices occurs with each Whisper model, which may lack such a layer. Speaker embeddings and surrogates are
        computed for each combination of clips and speaker encoders.

        Raises:
            ConfigError: the values of a combination contradict each other.
        """
        combinations: list[dict[str, Any]] = [{}]
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Choices) and name.startswith((*_PREPARED, *_HEARD)):
                combinations = [
                    params | chosen
                    for params in combinations
                    for chosen in ([{name: v} for v in dimension.values] if self._is_searched(name, params) else [{}])
                ]
        variants: list[RunConfig] = []
        covered: set[Any] = set()
        for params in combinations:
            one = self.apply(run, params)
            found_by = one.loss.speaker_encoders if one.mixes.found else ()
            clips = one.models, one.data, one.mixes, one.augment, found_by
            needs = {clips, (one.models, one.features.layers), *((*clips, part) for part in one.clip_parts)}
            if one.encoder.surrogate_steps:
                needs.add((*clips, "surrogate", one.features.speaker))
            if not needs <= covered:
                variants.append(one)
                covered |= needs
        return variants

    def as_dict(self) -> dict[str, Any]:
        """Return the space as plain values, in the form that ``parse`` reads."""
        return {name: dimension.as_yaml() for name, dimension in self.dimensions.items()}

    def _is_searched(self, name: str, params: Mapping[str, Any], unknown: Container[str] = ()) -> bool:
        """Return whether a trial with ``params`` searches ``name``, whatever its values of ``unknown`` settings are."""
        when = self.dimensions[name].when
        values = {**self.run_values, **params}
        return not when or any(
            all(other not in unknown and values[other] in v for other, v in condition.items()) for condition in when
        )

    def _required_params(self, name: str, required: Mapping[str, dict[str, Any]], where: str) -> dict[str, Any]:
        """Return suggestions with which a trial searches ``name``.

        Args:
            required: the same for each earlier dimension.

        Raises:
            ConfigError: a condition depends on a dimension that it may not depend on, or no condition can hold.
        """
        possible: list[dict[str, Any]] = []
        unmet: list[str] = []
        for condition in self.dimensions[name].when:
            params: dict[str, Any] = {}
            missed = [
                other for other, v in condition.items() if other not in required and self.run_values[other] not in v
            ]
            for other, values in condition.items():
                if other in required:
                    self._check_condition(name, other, values, where)
                    params |= required[other] | {other: values[0]}
            possible += [] if missed else [params]
            unmet += missed
        if unmet and not possible:
            run_value = json.dumps(self.run_values[unmet[0]])
            raise ConfigError(
                f"{where}: would never be searched, because {unmet[0]} is {run_value} and not searched; search that "
                "too, or drop this"
            )
        return possible[0] if possible else {}

    def _check_condition(self, name: str, other: str, values: Sequence[Any], where: str) -> None:
        dimension = self.dimensions[other]
        if name.startswith(_PREPARED) and not other.startswith(_PREPARED):
            raise ConfigError(
                f"{where}.when.{other}: is searched, but data is prepared before the first trial and may depend "
                f"only on settings of {', '.join(p.rstrip('.') for p in _PREPARED)}; drop this condition"
            )
        if isinstance(dimension, Range) and not dimension.is_integer:
            raise ConfigError(f"{where}.when.{other}: is searched in a range of floats; list its choices instead")
        for value in values:
            is_run_value = bool(dimension.when) and value == self.run_values[other]
            if not is_run_value and not dimension.allows(value):
                raise ConfigError(
                    f"{where}.when.{other}: {json.dumps(value)}: never suggested; search.{other} is "
                    f"{dimension.as_yaml()}"
                )


def _check_name(name: str, names: Sequence[str], where: str) -> None:
    for prefix, reason in _NOT_SEARCHABLE.items():
        if name.startswith(prefix):
            raise ConfigError(f"{where}: cannot be searched: {reason}")
    if name not in names:
        searchable = [n for n in names if not n.startswith(tuple(_NOT_SEARCHABLE))]
        raise ConfigError(f"{where}: unknown setting; {spelling_hint(name, searchable)}")


def _in_order(dimensions: Mapping[str, Range | Choices], place: str) -> dict[str, Range | Choices]:
    """Return ``dimensions`` in their order, but each after those that its conditions depend on."""
    predecessors = {name: [o for o in condition_settings(d) if o in dimensions] for name, d in dimensions.items()}
    try:
        return {name: dimensions[name] for name in TopologicalSorter(predecessors).static_order()}
    except CycleError as error:
        cycle = " → ".join(reversed(error.args[1]))
        raise ConfigError(f"{place}: search: conditions form a cycle: {cycle}; drop one of them") from None


def _substituted(run: RunConfig, params: Mapping[str, Any], place: str) -> RunConfig:
    data = run.model_dump(mode="json")
    for name, value in params.items():
        _section(data, name)[_last(name)] = value
    return validate(RunConfig, data, place)


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the section of ``data`` that holds the dotted ``name``."""
    for section in name.split(".")[:-1]:
        data = data[section]
    return data


def _last(name: str) -> str:
    return name.rpartition(".")[2]
