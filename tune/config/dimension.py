"""One dimension of a search space, a range or a list of choices: its YAML form and its Optuna distribution.

A range is ``{low: …, high: …}``, optionally with ``log: true`` or ``step: …``. Choices are a list, or
``{choices: […]}``. Both take an optional ``when`` condition, a mapping ``{setting: [values]}`` or a list of such
mappings: the dimension is searched only in trials in which every setting of the mapping, or of at least one mapping of
the list, has one of its values.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.distributions import FloatDistribution, IntDistribution

from nuanced_core.config.validation import spelling_hint
from nuanced_core.errors import ConfigError

__all__ = [
    "Choices",
    "Condition",
    "Range",
    "Suggester",
    "condition_settings",
    "flatten_names",
    "is_compatible",
    "read_dimension",
    "when_as_yaml",
]

_RANGE_KEYS = ("low", "high", "log", "step")
_KEYS = (*_RANGE_KEYS, "choices", "when")
_STEP_TOLERANCE = 1e-8  # in steps; Optuna's

# Allowed values of other settings, by dotted name.
Condition = Mapping[str, tuple[Any, ...]]


class Suggester(Protocol):
    """What suggests values: the methods of ``optuna.Trial`` that dimensions call."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return one of the integers from ``low`` to ``high``."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number from ``low`` to ``high``."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included; integers if ``low``, ``high`` and ``step`` are integers.

    Args:
        when: conditions, one of which has to hold for the dimension to be searched; it always is if there are none.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    when: tuple[Condition, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether only integers are suggested."""
        return all(isinstance(n, int) for n in (self.low, self.high, self.step) if n is not None)

    @property
    def values_to_check(self) -> tuple[Any, ...]:
        """Both bounds in the type in which they are suggested: 64 in {low: 64, high: 512, step: 0.5} is 64.0."""
        number = int if self.is_integer else float
        return number(self.low), number(self.high)

    @property
    def all_values(self) -> Iterable[int | float] | None:
        """All values that can be suggested, in order; None if there is no limit to their number."""
        if self.is_integer:
            return range(int(self.low), int(self.high) + 1, 1 if self.step is None else int(self.step))
        if self.step is None:
            return None
        low, high, step = float(self.low), float(self.high), float(self.step)
        return (min(low + n * step, high) for n in range(round((high - low) / step) + 1))

    def allows(self, value: Any) -> bool:
        """Return whether ``value`` can be suggested; never in a range of floats, where rounding would decide."""
        if not self.is_integer or isinstance(value, bool) or not isinstance(value, int):
            return False
        return self.low <= value <= self.high and (value - self.low) % (self.step or 1) == 0

    def suggest(self, trial: Suggester, name: str) -> int | float:
        """Return Optuna's suggestion of the setting ``name`` for ``trial``."""
        if self.is_integer:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(name, float(self.low), float(self.high), step=self.step, log=self.log)

    def as_stored(self, value: Any, place: str) -> int | float:
        """Convert a value that a user wrote to the form in which Optuna stores it.

        Raises:
            ConfigError: the value is not in the range, or no step reaches it: Optuna would sample another one.
        """
        is_number = isinstance(value, int if self.is_integer else int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high or not self._is_on_step(value):
            raise ConfigError(f"{place}: {value!r}: not in {json.dumps(self.as_yaml())}")
        return int(value) if self.is_integer else float(value)

    def _is_on_step(self, value: int | float) -> bool:
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < _STEP_TOLERANCE

    def as_yaml(self) -> dict[str, Any]:
        """Return the YAML form of the range."""
        fields = {key: getattr(self, key) for key in _RANGE_KEYS}
        given = {key: value for key, value in fields.items() if value is not None and value is not False}
        return given | when_as_yaml(self)


@dataclass(frozen=True)
class Choices:
    """An unordered list of values of any type.

    Args:
        when: conditions, one of which has to hold for the dimension to be searched; it always is if there are none.
    """

    values: tuple[Any, ...]
    when: tuple[Condition, ...] = ()

    @property
    def stored_values(self) -> list[bool | int | float | str | None]:
        """The values in the form in which Optuna stores them: lists as JSON."""
        return [json.dumps(v) if isinstance(v, list | dict) else v for v in self.values]

    @property
    def values_to_check(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    @property
    def all_values(self) -> Sequence[Any]:
        """All values, as ``Range`` has them."""
        return self.values

    def allows(self, value: Any) -> bool:
        """Return whether ``value`` can be suggested."""
        return value in self.values

    def suggest(self, trial: Suggester, name: str) -> Any:
        """Return Optuna's suggestion of the setting ``name`` for ``trial``."""
        return self.values[self.stored_values.index(trial.suggest_categorical(name, self.stored_values))]

    def as_stored(self, value: Any, place: str) -> bool | int | float | str | None:
        """Convert a value that a user wrote to the form in which Optuna stores it.

        Raises:
            ConfigError: the value is not one of the choices.
        """
        if value not in self.values:
            raise ConfigError(f"{place}: {value!r}: not one of {json.dumps(list(self.values))}")
        return self.stored_values[self.values.index(value)]

    def as_yaml(self) -> list[Any] | dict[str, Any]:
        """Return the YAML form of the choices."""
        return {"choices": list(self.values)} | when_as_yaml(self) if self.when else list(self.values)


def is_compatible(old: Range | Choices, new: Range | Choices) -> bool:
    """Return whether Optuna can learn about ``new`` from trials of ``old``.

    The bounds and the step of a range may change; choices must stay the same.
    """
    if isinstance(old, Choices) or isinstance(new, Choices):
        return isinstance(old, Choices) and isinstance(new, Choices) and old.stored_values == new.stored_values
    return (old.is_integer, old.log) == (new.is_integer, new.log)


def condition_settings(dimension: Range | Choices) -> list[str]:
    """Return the settings that a dimension's conditions depend on, without repeats."""
    return list(dict.fromkeys(other for condition in dimension.when for other in condition))


def flatten_names(data: Mapping[str, Any], names: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Flatten a mapping to dotted names, since a file or an override may nest them: ``encoder: {width: …}``."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = prefix + key
        is_section = isinstance(value, dict) and name not in names and not set(value) & set(_KEYS)
        for full, inner in (flatten_names(value, names, f"{name}.") if is_section else {name: value}).items():
            existing = flat.get(full)
            both = isinstance(existing, dict) and isinstance(inner, dict)
            flat[full] = {**existing, **inner} if both else inner  # type: ignore[dict-item]
    return flat


def read_dimension(value: Any, names: Sequence[str], where: str) -> Range | Choices:
    """Parse the YAML form of a dimension.

    Args:
        names: the settings that conditions may depend on.
        where: the place of the value, for error messages.

    Raises:
        ConfigError: the value is neither a range nor a list of choices, or it is an invalid one.
    """
    if isinstance(value, list):
        return _choices(value, (), where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r}: neither a range {{low: …, high: …}} nor a list of choices")
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"{where}.{key}: unknown; {spelling_hint(key, _KEYS)}")
        if key in _RANGE_KEYS and "choices" in value:
            raise ConfigError(f"{where}: choices and {key} exclude each other; drop one")
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
    for n, stored in enumerate(choices.stored_values):
        # Optuna compares choices with ==, for which 1, 1.0 and true are equal.
        if stored in choices.stored_values[:n]:
            raise ConfigError(f"{where}: the choice {values[n]!r} is listed twice")
    return choices


def _range(value: Mapping[str, Any], when: tuple[Condition, ...], where: str) -> Range:
    for key in ("low", "high"):
        if value.get(key) is None:
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
        raise ConfigError(f"{where}: log and step exclude each other; drop one")
    if found.step is not None and found.step <= 0:
        raise ConfigError(f"{where}.step: {found.step} is not above 0")
    _check_steps(found, where)
    return found


def _check_steps(found: Range, where: str) -> None:
    """Refuse a ``high`` that no step reaches: Optuna would lower it, with a warning that nobody would see."""
    if found.step is None:
        return
    distribution = IntDistribution if found.is_integer else FloatDistribution
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reached = distribution(found.low, found.high, step=found.step).high  # type: ignore[arg-type]
    if reached != found.high:
        raise ConfigError(
            f"{where}: steps of {found.step} from {found.low} do not reach high {found.high}; "
            f"the nearest value below it is {reached:g}"
        )


def _conditions(value: Any, names: Sequence[str], where: str) -> tuple[Condition, ...]:
    """Parse the value of ``when``."""
    found = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, dict) or not one:
            raise ConfigError(f"{where}: {one!r}: not 'setting: [values]'")
        condition = flatten_names(one, names)
        for other, values in condition.items():
            if other not in names:
                raise ConfigError(f"{where}.{other}: unknown setting; {spelling_hint(other, names)}")
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}.{other}: {values!r}: not a list of values")
        found.append({other: tuple(values) for other, values in condition.items()})
    if not found:
        raise ConfigError(f"{where}: []: no condition; drop it")
    return tuple(found)


def when_as_yaml(dimension: Range | Choices) -> dict[str, Any]:
    """Return ``{"when": …}`` in the YAML form of a dimension's conditions; an empty mapping if it has none."""
    conditions = [{other: list(values) for other, values in condition.items()} for condition in dimension.when]
    return {"when": conditions[0] if len(conditions) == 1 else conditions} if conditions else {}
