"""TODO."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nuanced_core.errors import ConfigError

__all__ = ["dotted_names", "spelling_hint", "validate"]
S = TypeVar("S", bound=BaseModel)


def validate(settings: type[S], data: Mapping[str, Any], place: str) -> S:
    """``data`` as ``settings``; ``place`` is named in errors.

    Raises:
        ConfigError: one line that names the first wrong setting, its value and the fix.
    """
    try:
        # Through JSON, so that strict types take a YAML list for a tuple but never "3" for 3.
        return settings.model_validate_json(json.dumps(data, allow_nan=True), strict=True)
    except TypeError as error:
        raise ConfigError(f"{place}: {error}") from None
    except ValidationError as error:
        problems = error.errors()
        raise ConfigError(f"{place}: {_problem(settings, problems)}") from None


def dotted_names(settings: type[BaseModel]) -> Iterator[str]:
    """The names of all settings, as ``section.name``."""
    for name, field in settings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from (f"{name}.{rest}" for rest in dotted_names(inner))
        else:
            yield name


def spelling_hint(name: str, names: Sequence[str]) -> str:
    """A hint at the nearest right name, or at all of them where none is near."""
    last = {n.rpartition(".")[2]: n for n in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    close += [last[n] for n in difflib.get_close_matches(name.rpartition(".")[2], list(last), n=1, cutoff=0.6)]
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"


def _problem(settings: type[BaseModel], problems: Sequence[Any]) -> str:
    """One line for the first of pydantic's problems, in the words of the YAML file."""
    names = set(dotted_names(settings)) | {name.split(".")[0] for name in dotted_names(settings)}
    first = problems[0]
    keys = [str(key) for key in first["loc"]]
    # A union adds its own steps to the location: keep what is a name of ours.
    known = max((n for n in range(len(keys) + 1) if ".".join(keys[:n]) in names), default=0)
    if first["type"] == "extra_forbidden":
        unknown = ".".join(keys[: known + 1])
        section = ".".join(keys[:known])
        inside = [n for n in dotted_names(settings) if not section or n.startswith(section + ".")]
        tops = list(settings.model_fields) if not section else []
        return f"{unknown}: unknown setting; {spelling_hint(unknown, tops + inside)}"
    same = [p for p in problems if [str(k) for k in p["loc"]][:known] == keys[:known]]
    place = ".".join(keys[:known])
    value = first["input"] if known == len(keys) or not same[1:] else _input_at(same)
    told = " or ".join(dict.fromkeys(_told(p) for p in same))
    prefix = f"{place}: " if place else ""
    return f"{prefix}{json.dumps(value, default=str)[:80]}: {told}"


def _input_at(problems: Sequence[Any]) -> Any:
    """The shortest location's input: the value that the user wrote, not a part of it."""
    return min(problems, key=lambda p: len(p["loc"]))["input"]


def _told(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text[0].lower() + text[1:]
