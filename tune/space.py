"""The YAML search space: read and checked once, then suggested by Optuna and put into a run's settings."""

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution

from nuanced_core.config import RunConfig, dotted_names, nearest, validate
from nuanced_core.errors import ConfigError

__all__ = ["Choices", "Range", "Space"]

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
# Their values are prepared (rendered, fetched) before the first trial, so they have to be countable.
_LISTED_ONLY = ("models.", "data.", "features.")
_RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Range:
    """Every number from ``low`` to ``high``, both included; whole numbers if all that is given is whole."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are suggested."""
        return all(isinstance(n, int) for n in (self.low, self.high, self.step) if n is not None)

    def as_yaml(self) -> dict[str, Any]:
        """The range as a search space says it."""
        return {key: value for key, value in asdict(self).items() if value is not None and value is not False}


@dataclass(frozen=True)
class Choices:
    """A few values of any kind, in no order."""

    values: tuple[Any, ...]

    @property
    def keys(self) -> list[bool | int | float | str | None]:
        """The values as Optuna can store them: lists as JSON."""
        return [json.dumps(v) if isinstance(v, list | dict) else v for v in self.values]

    def as_yaml(self) -> list[Any]:
        """The choices as a search space says them."""
        return list(self.values)


@dataclass(frozen=True)
class Space:
    """What a sweep varies: dotted settings of a run, each with its range or choices."""

    dimensions: Mapping[str, Range | Choices]

    @classmethod
    def parse(cls, data: Any, run: RunConfig, place: str) -> "Space":
        """The space that ``data`` describes; each bound and choice is tried on ``run``.

        A setting whose value is null is not searched, so a file can drop what the file it extends searches.

        Raises:
            ConfigError: a name is no setting of a run or may not vary, or a value is not valid for it.
        """
        if data is not None and not isinstance(data, dict):
            raise ConfigError(f"{place}: search: {data!r}: not 'setting: range or choices' lines")
        names = list(dotted_names(RunConfig))
        dimensions: dict[str, Range | Choices] = {}
        for name, value in _flat(data or {}, names).items():
            if value is None:
                continue
            where = f"{place}: search.{name}"
            _check_name(name, names, where)
            dimensions[name] = dimension = _dimension(name, value, where)
            for tried in _values_to_try(dimension):
                _substituted(run, {name: tried}, f"{place}: search")
        if not dimensions:
            raise ConfigError(
                f"{place}: search: nothing is searched; add settings such as "
                "'train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}'"
            )
        return cls(dimensions)

    @property
    def names(self) -> list[str]:
        """The dotted settings that are searched."""
        return list(self.dimensions)

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """The values that Optuna wants ``trial`` to try, by dotted setting."""
        return {name: _suggest(trial, name, dimension) for name, dimension in self.dimensions.items()}

    def apply(self, run: RunConfig, params: Mapping[str, Any]) -> RunConfig:
        """``run`` with ``params`` put in.

        Raises:
            ConfigError: the values contradict one another.
        """
        return _substituted(run, params, "search")

    def variants(self, run: RunConfig, sections: Sequence[str]) -> list[RunConfig]:
        """``run`` in every combination of the choices that are searched in ``sections``.

        Raises:
            ConfigError: values contradict one another.
        """
        chosen = {
            name: dimension.values
            for name, dimension in self.dimensions.items()
            if name.split(".")[0] in sections and isinstance(dimension, Choices)
        }
        return [
            self.apply(run, dict(zip(chosen, values, strict=True))) for values in itertools.product(*chosen.values())
        ]

    def as_dict(self) -> dict[str, Any]:
        """The space as plain values, in the form that ``parse`` reads."""
        return {name: dimension.as_yaml() for name, dimension in self.dimensions.items()}


def _flat(data: Mapping[str, Any], names: Sequence[str], above: str = "") -> dict[str, Any]:
    """``data`` by dotted name, where a file or an override may also nest it: ``encoder: {width: …}``."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = above + key
        is_section = isinstance(value, dict) and name not in names and not set(value) & set(_RANGE_KEYS)
        for full, inner in (_flat(value, names, f"{name}.") if is_section else {name: value}).items():
            below = flat.get(full)
            both = isinstance(below, dict) and isinstance(inner, dict)
            flat[full] = {**below, **inner} if both else inner  # type: ignore[dict-item]
    return flat


def _check_name(name: str, names: Sequence[str], where: str) -> None:
    for beginning, reason in _FIXED.items():
        if name.startswith(beginning):
            raise ConfigError(f"{where}: cannot be searched: {reason}")
    if name not in names:
        searchable = [n for n in names if not n.startswith(tuple(_FIXED))]
        raise ConfigError(f"{where}: unknown setting; {nearest(name, searchable)}")


def _dimension(name: str, value: Any, where: str) -> Range | Choices:
    if isinstance(value, list):
        return _choices(value, where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r}: neither a range {{low: …, high: …}} nor a list of choices")
    if name.startswith(_LISTED_ONLY):
        raise ConfigError(f"{where}: a range; list its values, because each is prepared before the first trial")
    return _range(value, where)


def _choices(values: list[Any], where: str) -> Choices:
    choices = Choices(tuple(values))
    if not values:
        raise ConfigError(f"{where}: no choices; list at least one value")
    for n, key in enumerate(choices.keys):
        # Optuna compares choices with ==, where 1, 1.0 and true are the same.
        if key in choices.keys[:n]:
            raise ConfigError(f"{where}: the choice {values[n]!r} stands twice")
    return choices


def _range(value: Mapping[str, Any], where: str) -> Range:
    for key in value:
        if key not in _RANGE_KEYS:
            raise ConfigError(f"{where}.{key}: unknown; {nearest(key, _RANGE_KEYS)}")
    for key in ("low", "high"):
        if key not in value:
            raise ConfigError(f"{where}: has no {key}; a range is {{low: …, high: …}}")
    for key in ("low", "high", "step"):
        number = value.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float | None):
            raise ConfigError(f"{where}.{key}: {number!r}: not a number")
    if not isinstance(value.get("log", False), bool):
        raise ConfigError(f"{where}.log: {value['log']!r}: neither true nor false")
    found = Range(value["low"], value["high"], value.get("log", False), value.get("step"))
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


def _suggest(trial: optuna.trial.BaseTrial, name: str, dimension: Range | Choices) -> Any:
    if isinstance(dimension, Choices):
        keys = dimension.keys
        return dimension.values[keys.index(trial.suggest_categorical(name, keys))]
    low, high, log, step = dimension.low, dimension.high, dimension.log, dimension.step
    if dimension.whole:
        step = 1 if step is None else int(step)
        return trial.suggest_int(name, int(low), int(high), step=step, log=log)
    return trial.suggest_float(name, float(low), float(high), step=step, log=log)


def _values_to_try(dimension: Range | Choices) -> Iterator[Any]:
    if isinstance(dimension, Choices):
        yield from dimension.values
    else:
        # As they will be suggested: 64 in {low: 64, high: 512, step: 0.5} is 64.0.
        number = int if dimension.whole else float
        yield from (number(dimension.low), number(dimension.high))


def _substituted(run: RunConfig, params: Mapping[str, Any], place: str) -> RunConfig:
    data = run.model_dump(mode="json")
    for name, value in params.items():
        *sections, last = name.split(".")
        group = data
        for section in sections:
            group = group[section]
        group[last] = value
    return validate(RunConfig, data, place)
