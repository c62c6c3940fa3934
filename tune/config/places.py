"""Places in settings, made absolute, so that a sweep finds them from any working directory.

A relative path is relative to the working directory, except that of an SQLite database in ``sweep.storage``, which is
relative to the sweep's folder.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from nuanced_core.paths import user_path
from nuanced_core.text.sentences import SENTENCE_SPLITS
from tune.config.secrets import is_variable

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = [
    "absolute_setting",
    "database_file",
    "database_url",
    "moved_into",
    "with_absolute_places",
    "without_own_database",
]

_URL_FORMS = "sqlite:///study.db, postgresql+psycopg://user@host/database, or env:NAME"
_TRUE = ("true", "yes", "on", "y", "t", "1")  # as SQLAlchemy reads uri=true


def with_absolute_places(data: Mapping[str, Any], folder: Path, keep: Collection[str] = ()) -> dict[str, Any]:
    """Return settings in which every path is absolute, also in the search space and in ``sweep.enqueue``.

    Args:
        data: settings as ``SweepConfig.as_dict`` returns them, or a part of them.
        folder: of the sweep, which need not exist.
        keep: values that stay as they are.
    """

    def converted(node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            return {key: converted(value, f"{path}.{key}") for key, value in node.items()}
        name = _path_setting(path.removesuffix(".choices"))
        if name is None:
            return [converted(item, path) for item in node] if isinstance(node, list | tuple) else node
        if isinstance(node, str):
            return node if node in keep else absolute_setting(name, node, folder)
        # A list is one of choices, except outside of the search space, where it is one of sentences.
        if isinstance(node, list | tuple) and path.startswith(".search."):
            return [converted(item, path) if isinstance(item, str) else item for item in node]
        return node

    found: dict[str, Any] = converted(data, "")
    return found


def absolute_setting(name: str, value: Any, folder: Path) -> Any:
    """Return the value of a setting as an absolute place, if that is what it names; any other value as it is.

    Args:
        name: dotted name of the setting.
        folder: of the sweep.
    """
    return _PATH_SETTINGS[name](value, folder) if name in _PATH_SETTINGS and isinstance(value, str) else value


def database_file(url: str) -> Path | None:
    """Return the file of an SQLite database as its URL names it, with ``~`` expanded; None for any other database.

    Raises:
        ValueError: ``url`` is not the URL of a database, or that of one in memory; the message holds nothing of it.
    """
    return _sqlite_file(_parsed(url))


def database_url(url: str, file: Path | None) -> str:
    """Return the URL of a database, with ``file`` in place of that of an SQLite database, escaped for SQLAlchemy.

    Raises:
        ValueError: as for ``database_file``.
    """
    parsed = _parsed(url)
    if file is not None:
        parsed = parsed.set(database=f"file:{quote(str(file))}" if _is_uri(parsed) else str(file))
    return parsed.render_as_string(hide_password=False)


def moved_into(folder: Path, file: Path, outputs: Path) -> Path | None:
    """Return where a file of a sweep lies now that the sweep's folder is ``folder``; None if it was in no such folder.

    Args:
        file: absolute path from the sweep's settings.
        outputs: absolute ``sweep.outputs``, which held the sweep's folder when it was created.
    """
    if not file.is_relative_to(outputs):
        return None
    inner = file.relative_to(outputs).parts[1:]
    return folder.joinpath(*inner) if inner else None


def without_own_database(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep's recorded settings for a new one, whose database lies in its own folder if the other's did."""
    sweep = dict(data.get("sweep") or {})
    storage, outputs = sweep.get("storage"), sweep.get("outputs")
    try:
        if isinstance(storage, str) and not is_variable(storage) and isinstance(outputs, str):
            file = database_file(storage)
            inner = None if file is None else moved_into(Path(), file, Path(outputs))
            sweep["storage"] = database_url(storage, inner)
    except ValueError:  # the check of the setting says why
        pass
    return {**data, "sweep": sweep}


def _absolute_path(value: str, folder: Path) -> str:
    return str(user_path(value).absolute())


def _absolute_source(value: str, folder: Path) -> str:
    from nuanced_core.weights.fetch import SOURCES

    return value if value in SOURCES else _absolute_path(value, folder)


def _absolute_sentences(value: str, folder: Path) -> str:
    return value if value in SENTENCE_SPLITS else _absolute_path(value, folder)


def _absolute_shared(value: str, folder: Path) -> str:
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.utils import get_protocol

    if is_variable(value) or get_protocol(value) not in LocalFileSystem.protocol:
        return value
    return str(LocalFileSystem._strip_protocol(value))


def _absolute_storage(value: str, folder: Path) -> str:
    if is_variable(value):
        return value
    try:
        file = database_file(value)
        return value if file is None else database_url(value, _normal(folder.absolute() / file))
    except ValueError:  # the check of the setting says why
        return value


_PATH_SETTINGS: dict[str, Callable[[str, Path], str]] = {
    "models.source": _absolute_source,
    "data.sentences": _absolute_sentences,
    "data.val_sentences": _absolute_sentences,
    "data.people": _absolute_path,
    "sweep.warm_start": _absolute_path,
    "sweep.outputs": _absolute_path,
    "sweep.shared": _absolute_shared,
    "sweep.storage": _absolute_storage,
}


def _path_setting(path: str) -> str | None:
    """Return the setting that a place in a tree of settings belongs to, such as ``.search.data.sentences``."""
    return next((name for name in _PATH_SETTINGS if path.endswith(f".{name}")), None)


def _normal(path: Path) -> Path:
    """Remove ``..`` from the path of a file that need not exist yet."""
    return path.resolve() if ".." in path.parts else path


def _parsed(url: str) -> "URL":
    from sqlalchemy.engine import make_url

    try:
        parsed = make_url(url)
    except Exception:  # its message may quote a part of a password
        parsed = None
    if parsed is None or (parsed.password is not None and url.count("@") > 1):
        raise ValueError(
            f"not the URL of a database; write {_URL_FORMS}, and in a password @ as %40, : as %3A, / as %2F, % as %25"
        )
    return parsed


def _sqlite_file(url: "URL") -> Path | None:
    if url.get_backend_name() != "sqlite":
        return None
    if url.host or url.username:
        raise ValueError("an SQLite database has no host; write three slashes before its file: sqlite:///study.db")
    path = url.database or ""
    if _is_uri(url) and path.startswith("file:"):
        path = path.removeprefix("file:")
        if path.startswith("//"):  # an authority, which is empty or localhost
            path = "/" + path[2:].partition("/")[2]
        path = unquote(path)
    if path in ("", ":memory:") or url.query.get("mode") == "memory" or url.query.get("vfs") == "memdb":
        raise ValueError("a database in memory is lost with its process; name a file, such as sqlite:///study.db")
    return user_path(path)


def _is_uri(url: "URL") -> bool:
    return str(url.query.get("uri", "")).lower() in _TRUE
