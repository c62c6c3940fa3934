"""Reading and writing of YAML files with settings, and overrides from the command line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nuanced_core.errors import ConfigError, DiskError, one_line
from nuanced_core.paths import user_path

__all__ = ["apply_overrides", "read_yaml", "write_yaml", "yaml_text"]


# What PyYAML raises for text that it cannot read: the last four for a value that does not fit its form or tag, such as
# a number of more than 4,300 digits, 0x_ and !!bool x.
_NOT_YAML = (yaml.YAMLError, RecursionError, ValueError, AttributeError, IndexError, KeyError)
MOST_VALUES = 200_000  # of a file
SHOWN = 200  # characters of an override that an error shows


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    If the file has a key ``extends``, its mapping is merged over that of the file named there. This path is relative to
    the folder of the extending file; a leading ``~`` is replaced by the home directory.

    Raises:
        ConfigError: a file is missing, is not YAML, is nested too deeply, repeats a key, or extends itself.
    """
    return _read_yaml(path, ())


def _read_yaml(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in extending:
        raise ConfigError(f"{path}: extends itself; remove one of the 'extends' that form the cycle")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        others = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; there are: {', '.join(others)}" if others else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: contains a {type(data).__name__}; write settings as 'name: value' lines")
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: {base!r} is not the name of a file")
    base_path = path.parent / user_path(base)
    return _merged(_read_yaml(base_path, (*extending, path.resolve())), data)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Dumper that quotes each string that ``_StrictLoader`` would not read as one; libyaml is four times as fast."""


def yaml_text(data: Mapping[str, Any]) -> str:
    """Return ``data`` as ``write_yaml`` writes it."""
    text: str = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` atomically: a reader sees the old file or the complete new one.

    Raises:
        DiskError: the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(yaml_text(data), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with ``section.name=value`` overrides applied; values are parsed as YAML.

    Raises:
        ConfigError: an override does not have this form.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {override}: does not have the form section.name=value")
        try:
            value = yaml.load(text, Loader=_StrictLoader)
        except _NOT_YAML as error:
            shown = override if len(override) <= SHOWN else f"{override[:SHOWN]}…"
            raise ConfigError(f"--set {shown}: {_yaml_problem(error)}") from None
        for key in reversed(keys):
            value = {key: value}
        data = _merged(data, value)
    return data


class _StrictLoader(yaml.SafeLoader):
    """YAML loader without surprises: 1e-3 is a number, yes and no are strings, and a repeated key is an error.

    Aliases (``*name``) may not unfold to more than ``MOST_VALUES``: few lines could stand for billions.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}  # values that a node stands for, by its id

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if node is None:
            return None
        if alias is None:
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
            self._sizes[id(node)] = 1 + sum(self._sizes[id(child)] for child in children)
        elif id(node) not in self._sizes:
            raise yaml.MarkedYAMLError(problem="an alias of what it is in", problem_mark=alias.start_mark)
        if self._sizes[id(node)] > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES} values", problem_mark=node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"the name {key!r} is not a string", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is set twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_FLOAT = re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$")
for _class in (_StrictLoader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply; write settings as 'name: value' lines"
    if isinstance(error, ValueError) and "digits" in str(error):
        return "has a number of too many digits; shorten it"
    if not isinstance(error, yaml.YAMLError):
        return "has a value that is not of its type; write it without a tag, or quote it if it is text"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        return f"{where}{error.problem or error.context}"
    return one_line(error, None)


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged
