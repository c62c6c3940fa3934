"""Checks of data against settings, and the one-line messages for the first wrong setting."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nuanced_core.errors import ConfigError

__all__ = ["dotted_names", "spelling_hint", "validate"]

SettingsT = TypeVar("SettingsT", bound=BaseModel)


def validate(settings: type[SettingsT], data: Mapping[str, Any], place: str) -> SettingsT:
    """Convert ``data`` to ``settings``.

    Args:
        place: origin of the data, such as the path of a file; error messages begin with it.

    Raises:
        ConfigError: a setting is unknown or wrong; the message is one line that names the first such setting, its value
            and the fix.
    """
    try:
        undecodable = next(_undecodable(data), None)
    except RecursionError:
        raise ConfigError(f"{place}: is nested too deeply; write settings as 'name: value' lines") from None
    if undecodable is not None:
        raise ConfigError(f"{place}: {undecodable[0]}: {undecodable[1]!r}: holds bytes that are not UTF-8; rename it")
    try:
        # Validated as JSON: strict mode then accepts a YAML list for a tuple, but never "3" for 3.
        return settings.model_validate_json(json.dumps(data, allow_nan=True), strict=True)
    except TypeError as error:
        raise ConfigError(f"{place}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{place}: {_error_message(settings, error.errors())}") from None


def dotted_names(settings: type[BaseModel]) -> Iterator[str]:
    """Yield the names of all settings, as ``section.name``."""
    for name, field in settings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from (f"{name}.{rest}" for rest in dotted_names(inner))
        else:
            yield name


def spelling_hint(name: str, names: Sequence[str]) -> str:
    """Return a hint that suggests the most similar of ``names``, or lists all of them if none is similar."""
    by_last_part = {n.rpartition(".")[2]: n for n in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    last_part = name.rpartition(".")[2]
    close += [by_last_part[n] for n in difflib.get_close_matches(last_part, list(by_last_part), n=1, cutoff=0.6)]
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"


def _undecodable(data: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each text that Python could not decode, such as a path of another encoding."""
    if isinstance(data, str):
        try:
            data.encode()
        except UnicodeEncodeError:
            yield name, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _undecodable(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _undecodable(value, name)


def _error_message(settings: type[BaseModel], errors: Sequence[Any]) -> str:
    """Describe the first of pydantic's errors in one line, with the names that the YAML file uses."""
    names = set(dotted_names(settings)) | {name.split(".")[0] for name in dotted_names(settings)}
    first = errors[0]
    keys = [str(key) for key in first["loc"]]
    # pydantic adds steps for the members of a union to the location: keep the part that is the name of a setting.
    depth = max((n for n in range(len(keys) + 1) if ".".join(keys[:n]) in names), default=0)
    place = ".".join(keys[:depth])
    if first["type"] == "extra_forbidden":
        unknown = ".".join(keys[: depth + 1])
        inside = [n for n in dotted_names(settings) if not place or n.startswith(place + ".")]
        sections = [] if place else list(settings.model_fields)
        return f"{unknown}: unknown setting; {spelling_hint(unknown, sections + inside)}"
    same_setting = [error for error in errors if [str(key) for key in error["loc"]][:depth] == keys[:depth]]
    value = first["input"] if depth == len(keys) or not same_setting[1:] else _whole_input(same_setting)
    reasons = " or ".join(dict.fromkeys(_reason(error) for error in same_setting))
    if not keys:  # of settings that do not fit together, which the reason names
        return reasons
    prefix = f"{place}: " if place else ""
    return f"{prefix}{json.dumps(value, default=str)[:80]}: {reasons}"


def _whole_input(errors: Sequence[Any]) -> Any:
    """Return the input at the shortest location: the value that the user wrote, not a part of it."""
    return min(errors, key=lambda error: len(error["loc"]))["input"]


def _reason(error: Any) -> str:
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[0].lower() + text[1:]
