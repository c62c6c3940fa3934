"""One dimension of a search space: a range or a list of choices, as YAML says it and as Optuna suggests from it.

A range is ``{low: …, high: …}``, with ``log: true`` or ``step: …`` if wanted; choices are a list, or
``{choices: […]}``. Either may have a ``when``: it is searched only in trials where other settings have given values,
all of them in a mapping ``{setting: [values]}``, or those of one mapping in a list of such.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution

from nuanced_core.config.validation import spelling_hint
from nuanced_core.errors import ConfigError

__all__ = ["Choices", "Condition", "Range", "conditioned_on", "flat_names", "read_dimension", "shares_trials"]

_RANGE_KEYS = ("low", "high", "log", "step")
_KEYS = (*_RANGE_KEYS, "choices", "when")

# The values that other settings may have, by dotted name.
Condition = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Range:
    """Every number from ``low`` to ``high``, both included; whole numbers if all that is given is whole."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    when: tuple[Condition, ...] = ()  # searched where one of them holds; always if there is none

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are suggested."""
        return all(isinstance(n, int) for n in (self.low, self.high, self.step) if n is not None)

    @property
    def tried(self) -> tuple[Any, ...]:
        """Both bounds as they would be suggested: 64 in {low: 64, high: 512, step: 0.5} is 64.0."""
        number = int if self.whole else float
        return number(self.low), number(self.high)

    def allows(self, value: Any) -> bool:
        """Whether ``value`` may be suggested; of fractions none is, since rounding would decide."""
        if not self.whole or isinstance(value, bool) or not isinstance(value, int):
            return False
        return self.low <= value <= self.high and (value - self.low) % (self.step or 1) == 0

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> int | float:
        """The value that Optuna wants ``trial`` to try."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(name, float(self.low), float(self.high), step=self.step, log=self.log)

    def as_stored(self, value: Any, place: str) -> int | float:
        """A value that somebody chose, as Optuna stores it.

        Raises:
            ConfigError: it is not in the range.
        """
        right = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        if not right or not self.low <= value <= self.high:
            raise ConfigError(f"{place}: {value!r}: not in {json.dumps(self.as_yaml())}")
        return int(value) if self.whole else float(value)

    def as_yaml(self) -> dict[str, Any]:
        """The range as a search space says it."""
        said = {key: getattr(self, key) for key in _RANGE_KEYS}
        return {key: value for key, value in said.items() if value is not None and value is not False} | _when(self)


@dataclass(frozen=True)
class Choices:
    """A few values of any kind, in no order."""

    values: tuple[Any, ...]
    when: tuple[Condition, ...] = ()  # searched where one of them holds; always if there is none

    @property
    def keys(self) -> list[bool | int | float | str | None]:
        """The values as Optuna can store them: lists as JSON."""
        return [json.dumps(v) if isinstance(v, list | dict) else v for v in self.values]

    @property
    def tried(self) -> tuple[Any, ...]:
        """The values."""
        return self.values

    def allows(self, value: Any) -> bool:
        """Whether ``value`` may be suggested."""
        return value in self.values

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """The value that Optuna wants ``trial`` to try."""
        return self.values[self.keys.index(trial.suggest_categorical(name, self.keys))]

    def as_stored(self, value: Any, place: str) -> bool | int | float | str | None:
        """A value that somebody chose, as Optuna stores it.

        Raises:
            ConfigError: it is none of the choices.
        """
        if value not in self.values:
            raise ConfigError(f"{place}: {value!r}: none of {json.dumps(list(self.values))}")
        return self.keys[self.values.index(value)]

    def as_yaml(self) -> list[Any] | dict[str, Any]:
        """The choices as a search space says them."""
        return {"choices": list(self.values)} | _when(self) if self.when else list(self.values)


def shares_trials(old: Range | Choices, new: Range | Choices) -> bool:
    """Whether Optuna can learn of ``new`` from trials of ``old``: a range may grow or shrink, choices stay."""
    if isinstance(old, Choices) or isinstance(new, Choices):
        return isinstance(old, Choices) and isinstance(new, Choices) and old.keys == new.keys
    return (old.whole, old.log) == (new.whole, new.log)


def conditioned_on(dimension: Range | Choices) -> list[str]:
    """The settings that a dimension's conditions look at, each once."""
    return list(dict.fromkeys(other for condition in dimension.when for other in condition))


def flat_names(data: Mapping[str, Any], names: Sequence[str], above: str = "") -> dict[str, Any]:
    """``data`` by dotted name, where a file or an override may also nest it: ``encoder: {width: …}``."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = above + key
        is_section = isinstance(value, dict) and name not in names and not set(value) & set(_KEYS)
        for full, inner in (flat_names(value, names, f"{name}.") if is_section else {name: value}).items():
            below = flat.get(full)
            both = isinstance(below, dict) and isinstance(inner, dict)
            flat[full] = {**below, **inner} if both else inner  # type: ignore[dict-item]
    return flat


def read_dimension(value: Any, names: Sequence[str], where: str) -> Range | Choices:
    """What the YAML ``value`` says; conditions may look at the settings ``names``.

    Raises:
        ConfigError: it is neither a range nor choices, or one that is in itself wrong; ``where`` is named.
    """
    if isinstance(value, list):
        return _choices(value, (), where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r}: neither a range {{low: …, high: …}} nor a list of choices")
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"{where}.{key}: unknown; {spelling_hint(key, _KEYS)}")
        if key in _RANGE_KEYS and "choices" in value:
            raise ConfigError(f"{where}: choices and {key} exclude one another; drop one")
    when = _conditions(value["when"], names, f"{where}.when") if "when" in value else ()
    if "choices" not in value:
        return _range(value, when, where)
    if not isinstance(value["choices"], list):
        raise ConfigError(f"{where}.choices: {value['choices']!r}: not a list")
    return _choices(value["choices"], when, where)


def _choices(values: list[Any], when: tuple[Condition, ...], where: str) -> Choices:
    choices = Choices(tuple(values), when)
    if not values:
        raise ConfigError(f"{where}: no choices; list at least one value")
    for n, key in enumerate(choices.keys):
        # Optuna compares choices with ==, where 1, 1.0 and true are the same.
        if key in choices.keys[:n]:
            raise ConfigError(f"{where}: the choice {values[n]!r} stands twice")
    return choices


def _range(value: Mapping[str, Any], when: tuple[Condition, ...], where: str) -> Range:
    for key in ("low", "high"):
        if key not in value:
            raise ConfigError(f"{where}: has no {key}; a range is {{low: …, high: …}}")
    for key in ("low", "high", "step"):
        number = value.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float | None):
            raise ConfigError(f"{where}.{key}: {number!r}: not a number")
    if not isinstance(value.get("log", False), bool):
        raise ConfigError(f"{where}.log: {value['log']!r}: neither true nor false")
    found = Range(value["low"], value["high"], value.get("log", False), value.get("step"), when)
    if not found.low < found.high:
        raise ConfigError(f"{where}: low {found.low} is not below high {found.high}")
    if found.log and found.low <= 0:
        raise ConfigError(f"{where}: low {found.low} has no logarithm; raise it above 0 or drop log")
    if found.log and found.step is not None:
        raise ConfigError(f"{where}: log and step exclude one another; drop one")
    if found.step is not None and found.step <= 0:
        raise ConfigError(f"{where}.step: {found.step} is not above 0")
    _check_steps(found, where)
    return found


def _check_steps(found: Range, where: str) -> None:
    """Optuna lowers a ``high`` that no step hits, with a warning that nobody would see."""
    if found.step is None:
        return
    distribution = IntDistribution if found.whole else FloatDistribution
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reached = distribution(found.low, found.high, step=found.step).high  # type: ignore[arg-type]
    if reached != found.high:
        raise ConfigError(
            f"{where}: steps of {found.step} from {found.low} do not hit high {found.high}; "
            f"the nearest below it is {reached:g}"
        )


def _conditions(value: Any, names: Sequence[str], where: str) -> tuple[Condition, ...]:
    found = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, dict) or not one:
            raise ConfigError(f"{where}: {one!r}: not 'setting: [values]'")
        condition = flat_names(one, names)
        for other, values in condition.items():
            if other not in names:
                raise ConfigError(f"{where}.{other}: unknown setting; {spelling_hint(other, names)}")
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}.{other}: {values!r}: not a list of the values that it may have")
        found.append({other: tuple(values) for other, values in condition.items()})
    if not found:
        raise ConfigError(f"{where}: []: no condition; drop it")
    return tuple(found)


def _when(dimension: Range | Choices) -> dict[str, Any]:
    said = [{other: list(values) for other, values in condition.items()} for condition in dimension.when]
    return {"when": said[0] if len(said) == 1 else said} if said else {}
