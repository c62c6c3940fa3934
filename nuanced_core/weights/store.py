"""The cache of model files: one folder per asset and source, written atomically and verified by SHA-256.

Layout: ``weights/<asset>/<source>/`` has the files and ``entry.json``, which records the SHA-256 of each. An entry is
built in a temporary folder of ``weights/`` and renamed when it is complete, so an entry is complete or absent.
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
from nuanced_core.paths import user_path

__all__ = ["CachedFile", "Entry", "build", "cache_dir", "cached", "convert_disk_errors", "find"]

logger = logging.getLogger(__name__)

FORMAT = 1  # increase it when a conversion or a pinned file changes: entries of another format are fetched again
_RECORD = "entry.json"
_TEMPORARY_PREFIX = ".building-"
_STALE_AFTER_S = 24 * 3600
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

# Entries that this process has verified: hashing 330 MB at each fetch would take a second.
_verified: set[Path] = set()


@dataclass(frozen=True)
class Entry:
    """A verified cache entry: its folder, its source, a note on its contents, and the SHA-256 of its files by name."""

    folder: Path
    source: str
    note: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class CachedFile:
    """A file in the cache as recorded in its entry, not verified again; ``name`` is ``asset/file``."""

    name: str
    path: Path
    bytes: int
    source: str
    sha256: str


def cache_dir() -> Path:
    """Return the folder for files that can be fetched or computed again: $NUANCED_CACHE, or ~/.cache/nuanced-speech."""
    named = os.environ.get("NUANCED_CACHE")
    return user_path(named) if named else Path.home() / ".cache" / "nuanced-speech"


def find(asset: str, source: str) -> Entry | None:
    """Return the entry if it exists and all its hashes match; a damaged entry is discarded with a warning.

    Raises:
        DiskError: a damaged entry cannot be removed.
    """
    folder = _root() / asset / source
    if not folder.is_dir():
        return None
    try:
        entry, outdated = _read_entry(folder)
        damage = "has an outdated format" if outdated else _damage(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = f"cannot be read ({error})"
    if not damage:
        _verified.add(folder)
        return entry
    logger.warning("cache entry %s/%s %s: discarded", asset, source, damage)
    with convert_disk_errors(folder):
        _discard(folder)
    return None


def build(asset: str, source: str, fill: Callable[[Path], str]) -> Entry:
    """Build an entry; if another process completes the same entry first, return that one.

    Args:
        fill: writes the files into an empty folder and returns a note on them. If it raises an exception, no entry is
            left, and the exception is passed on.

    Raises:
        DiskError: the cache cannot be written, or its disk is full.
    """
    final = _root() / asset / source
    with convert_disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(_root())
        temporary = _make_temporary_folder(_root())
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
            # mkdtemp sets mode 0700, with which other users could not read a shared cache.
            temporary.chmod(0o755)
            if _move_into_place(temporary, final):
                _verified.add(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        entry = _read_entry(final)[0]
    if damage := _damage(entry):
        raise WeightsError(f"{final} {damage}: another process has just written it; fetch it again")
    return entry


def cached() -> list[CachedFile]:
    """Return all files that are recorded in the cache, sorted by name; unreadable entries are skipped."""
    files = []
    for record in sorted(_root().glob(f"*/*/{_RECORD}")):
        folder = record.parent
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            for name, about in _load_record(record)["files"].items():
                asset, source = folder.parent.name, folder.name
                path = folder / name
                files.append(CachedFile(f"{asset}/{name}", path, about["bytes"], source, about["sha256"]))
    return files


@contextmanager
def convert_disk_errors(folder: Path) -> Iterator[None]:
    """Convert an OSError about a full or unwritable disk to a DiskError; other exceptions are passed on."""
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


def _load_record(record: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return loaded


def _read_entry(folder: Path) -> tuple[Entry, bool]:
    record = _load_record(folder / _RECORD)
    sha256 = {str(name): str(about["sha256"]) for name, about in record["files"].items()}
    return Entry(folder, str(record["source"]), str(record["note"]), sha256), record["format"] != FORMAT


def _damage(entry: Entry) -> str:
    """Return a description of the damage to an entry's files, or an empty string."""
    for name, expected in entry.sha256.items():
        path = entry.folder / name
        if not path.is_file():
            return f"lacks {name}"
        if entry.folder not in _verified and hash_file(path) != expected:
            return f"is damaged (the SHA-256 of {name} is not the recorded one)"
    return ""


def _make_temporary_folder(root: Path) -> Path:
    # The name contains host and process, so that other processes can detect that the builder has died.
    return Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-", dir=root))


def _move_into_place(temporary: Path, final: Path) -> bool:
    """Rename a complete entry; return False if another process was faster, whose entry is then used."""
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:  # the folder exists and has files
            raise
        return False
    return True


def _discard(folder: Path) -> None:
    """Remove an entry atomically: rename it, then delete it."""
    _verified.discard(folder)
    trash = _make_temporary_folder(_root())
    try:
        with suppress(FileNotFoundError):
            folder.rename(trash / "discarded")
    finally:
        shutil.rmtree(trash, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Remove temporary folders that are older than a day, or whose process on this host has ended."""
    for folder in root.glob(f"{_TEMPORARY_PREFIX}*"):
        with suppress(OSError, ValueError):
            host, pid, _ = folder.name.removeprefix(_TEMPORARY_PREFIX).rsplit("-", 2)
            old = time.time() - folder.stat().st_mtime > _STALE_AFTER_S
            if old or (host == socket.gethostname() and not _is_alive(int(pid))):
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process of another user
        return True
    return True
