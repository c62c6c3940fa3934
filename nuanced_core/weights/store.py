"""The cache of model files: one folder per asset and source, written atomically, checked by hash.

Layout: `weights/<asset>/<source>/` holds the files and `entry.json`, which records the SHA-256 of each. A
folder is built beside the others under a temporary name and renamed into place: an entry is whole or absent.
"""

import errno
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuanced_core.errors import DiskError, WeightsError
from nuanced_core.hashing import hash_file

__all__ = ["CachedFile", "Entry", "build", "cache_dir", "cached", "find", "told_as_disk_error"]

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when an importer or a pin changes: entries of another format are fetched again
_RECORD = "entry.json"
_TEMPORARY = ".building-"
_STALE_AFTER_S = 24 * 3600
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

# Entries whose hashes this process has compared: hashing 330 MB at every fetch would cost a second each.
_verified: set[Path] = set()


@dataclass(frozen=True)
class Entry:
    """A verified cache entry: its folder, source, what is notable about it, and the SHA-256 of its files."""

    folder: Path
    source: str
    note: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class CachedFile:
    """A file in the cache as its record describes it (not hashed again): `name` is `asset/file`."""

    name: str
    path: Path
    bytes: int
    source: str
    sha256: str


def cache_dir() -> Path:
    """Return the folder of everything that can be fetched or computed again: $NUANCED_CACHE or a default."""
    named = os.environ.get("NUANCED_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "nuanced-speech"


def find(asset: str, source: str) -> Entry | None:
    """Return the entry if it is there and every hash agrees; a damaged one is said and discarded."""
    folder = _root() / asset / source
    if not folder.is_dir():
        return None
    try:
        entry, outdated = _read(folder)
        damage = "has an outdated format" if outdated else _damage(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = f"cannot be read ({error})"
    if not damage:
        _verified.add(folder)
        return entry
    logger.warning("cache entry %s/%s %s: discarded", asset, source, damage)
    with told_as_disk_error(folder):
        _discard(folder)
    return None


def build(asset: str, source: str, fill: Callable[[Path], str]) -> Entry:
    """Make an entry: `fill` writes its files into an empty folder and returns a note about them.

    If another process finishes the same entry first, that one is returned. Raises DiskError if the cache
    cannot be written or is full, and what `fill` raises; nothing half-done is left in either case.
    """
    final = _root() / asset / source
    with told_as_disk_error(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(_root())
        temporary = _temporary(_root())
        try:
            note = fill(temporary)
            files = {path.name: path for path in sorted(temporary.iterdir()) if path.is_file()}
            record = {
                "format": FORMAT,
                "source": source,
                "note": note,
                "files": {n: {"sha256": hash_file(p), "bytes": p.stat().st_size} for n, p in files.items()},
            }
            (temporary / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            # mkdtemp makes 0700, which would hide a shared cache from other users.
            temporary.chmod(0o755)
            if _move_into_place(temporary, final):
                _verified.add(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        entry = _read(final)[0]
    if damage := _damage(entry):
        raise WeightsError(f"{final} {damage}: another process has just written it; fetch again")
    return entry


def cached() -> list[CachedFile]:
    """Return every file that the cache's records list, by name; unreadable entries are left out."""
    files = []
    for record in sorted(_root().glob(f"*/*/{_RECORD}")):
        folder = record.parent
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            for name, about in _load(record)["files"].items():
                asset, source = folder.parent.name, folder.name
                path = folder / name
                files.append(CachedFile(f"{asset}/{name}", path, about["bytes"], source, about["sha256"]))
    return files


@contextmanager
def told_as_disk_error(folder: Path) -> Iterator[None]:
    """Turn an OSError about a full or unwritable disk into a DiskError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        raise DiskError(
            f"{folder}: {os.strerror(error.errno or 0)}; free some space or make it writable, "
            "or name another folder with NUANCED_CACHE"
        ) from error


def _root() -> Path:
    return cache_dir() / "weights"


def _load(record: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return loaded


def _read(folder: Path) -> tuple[Entry, bool]:
    record = _load(folder / _RECORD)
    sha256 = {str(name): str(about["sha256"]) for name, about in record["files"].items()}
    return Entry(folder, str(record["source"]), str(record["note"]), sha256), record["format"] != FORMAT


def _damage(entry: Entry) -> str:
    """Return what is wrong with the files of an entry, or nothing."""
    for name, expected in entry.sha256.items():
        path = entry.folder / name
        if not path.is_file():
            return f"lacks {name}"
        if entry.folder not in _verified and hash_file(path) != expected:
            return f"is damaged ({name} has another SHA-256 than recorded)"
    return ""


def _temporary(root: Path) -> Path:
    # The name says who builds it, so that others can tell when nobody does any more.
    return Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{socket.gethostname()}-{os.getpid()}-", dir=root))


def _move_into_place(temporary: Path, final: Path) -> bool:
    """Return whether ours got the place; if not, another process was faster, and its entry serves."""
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:  # "a folder with files is there"
            raise
        return False
    return True


def _discard(folder: Path) -> None:
    """Remove an entry in one step for onlookers: rename, then delete."""
    _verified.discard(folder)
    grave = _temporary(_root())
    try:
        with suppress(FileNotFoundError):
            folder.rename(grave / "discarded")
    finally:
        shutil.rmtree(grave, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Remove what killed processes left: older than a day, or of a process of this host that is gone."""
    for folder in root.glob(f"{_TEMPORARY}*"):
        with suppress(OSError, ValueError):
            host, pid, _ = folder.name.removeprefix(_TEMPORARY).rsplit("-", 2)
            old = time.time() - folder.stat().st_mtime > _STALE_AFTER_S
            if old or (host == socket.gethostname() and not _alive(int(pid))):
                shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True
