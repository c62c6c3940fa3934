"""A content-addressed cache of tensors, verified by their hashes and limited in size.

Layout: ``<folder>/<kind>/<two digits>/<key>.safetensors``, tensors by name, the SHA-256 of each in the metadata. A
process hashes a tensor when it first reads it; a damaged entry counts as missing. The modification time of an entry's
file is the time of its last use. Model files (``weights/``) are in the same folder and are never changed here.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nuanced_core.errors import ConfigError, DiskError

__all__ = ["KINDS", "Cache", "Entry", "Kind", "cache_limit", "format_size", "locked", "parse_size"]

STALE_PART_SECONDS = 3600  # age at which a .part file is taken for the rest of a dead process

Kind = Literal["clips", "features", "speakers", "people", "windows", "baselines", "surrogates"]
KINDS: tuple[Kind, ...] = ("clips", "features", "speakers", "people", "windows", "baselines", "surrogates")

_NAME = re.compile(r"[0-9a-f]{64}\.(safetensors|json)")
_PART = re.compile(r"[0-9a-f]{64}\.(safetensors|json)\.[0-9a-f]+\.part")
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

# State of this process: tensors whose hashes are verified, so that none is hashed twice, and files that it has used,
# which are not pruned.
_verified: set[tuple[Path, str]] = set()
_used: set[Path] = set()


@dataclass(frozen=True)
class Entry:
    """A file of the cache."""

    kind: Kind
    path: Path
    bytes: int
    used: float  # time of the last use, in seconds since the epoch


class Cache:
    """Entries of named tensors in a folder that processes can share: each entry is written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, kind: Kind, key: str) -> bool:
        """Return whether there is such an entry, and mark it as used; damage is detected when it is read."""
        path = self._path(kind, key)
        if not path.is_file():
            return False
        _mark_used(path)
        return True

    def names(self, kind: Kind, key: str) -> list[str] | None:
        """Return the names of an entry's tensors, or None if it is missing or damaged."""
        try:
            with safe_open(self._path(kind, key), framework="pt") as file:
                return list(file.keys())
        except (OSError, SafetensorError):
            return None

    def load(self, kind: Kind, key: str, names: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        """Return an entry's tensors (all, or those named), memory-mapped, or None if it is missing or damaged."""
        path = self._path(kind, key)
        tensors = _read(path, names, _verified)
        if tensors is None:
            return None
        _verified.update((path, name) for name in tensors)
        _mark_used(path)
        return tensors

    def save(self, kind: Kind, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write an entry, replacing a damaged one, and return its tensors, on the CPU.

        Raises:
            DiskError: it cannot be written.
        """
        path = self._path(kind, key)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(contents, part, {name: _digest(tensor) for name, tensor in contents.items()})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise DiskError(
                f"{path.parent}: the cache cannot be written: {error}; free some disk, remove entries with "
                "'nuanced cache --prune SIZE', or set another folder with NUANCED_CACHE"
            ) from None
        _used.add(path)
        return contents

    def entries(self) -> list[Entry]:
        """Return all entries, the least recently used first."""
        found = []
        for kind, path in self._files(_NAME):
            with suppress(OSError):  # removed in the meantime
                stat = path.stat()
                found.append(Entry(kind, path, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda entry: (entry.used, entry.path))

    def prune(self, limit: int) -> list[Entry]:
        """Remove the least recently used entries until at most ``limit`` bytes are left; return those removed.

        Entries that this process has read, written or found are kept. Partial files of dead processes are removed too.

        Raises:
            DiskError: an entry cannot be removed.
        """
        for _, path in self._files(_PART):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_PART_SECONDS:
                    path.unlink()
        entries = self.entries()
        left = sum(entry.bytes for entry in entries)
        removed = []
        for entry in entries:
            if left <= limit:
                break
            if entry.path not in _used:
                _remove(entry.path)
                removed.append(entry)
                left -= entry.bytes
        return removed

    def verify(self) -> list[Entry]:
        """Hash all entries again and remove the damaged ones; return those removed.

        Raises:
            DiskError: an entry cannot be removed.
        """
        damaged = [entry for entry in self.entries() if not _is_intact(entry.path)]
        for entry in damaged:
            _remove(entry.path)
        return damaged

    def _files(self, name: re.Pattern[str]) -> Iterator[tuple[Kind, Path]]:
        for kind in KINDS:
            for path in (self.folder / kind).rglob("*"):
                if name.fullmatch(path.name):
                    yield kind, path

    def _path(self, kind: Kind, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.safetensors"


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file among the processes of this machine; the kernel releases it if one dies.

    Raises:
        DiskError: the file cannot be created.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("a")
    except OSError as error:
        raise DiskError(f"{file}: cannot be created: {error.strerror}; set another folder with NUANCED_CACHE") from None
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def cache_limit() -> int | None:
    """Return the largest size of all entries together in bytes, from $NUANCED_CACHE_LIMIT; None: no limit.

    Raises:
        ConfigError: the variable is not a size.
    """
    text = os.environ.get("NUANCED_CACHE_LIMIT", "").strip()
    return parse_size(text, "NUANCED_CACHE_LIMIT") if text else None


def parse_size(text: str, place: str) -> int:
    """Parse a size such as 10GB, 500MB or 0 (GB is 1e9 bytes) to bytes; errors name ``place``.

    Raises:
        ConfigError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"{place}: {text!r} is not a size; write 10GB, 500MB or 0")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_size(count: int) -> str:
    """Format a number of bytes with one decimal and a unit, such as 1.5 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _read(path: Path, names: Sequence[str] | None, verified: set[tuple[Path, str]]) -> dict[str, Tensor] | None:
    """Return tensors of a file, or None if it is missing or damaged; tensors in ``verified`` are not hashed."""
    try:
        with safe_open(path, framework="pt") as file:
            digests = file.metadata() or {}
            tensors: dict[str, Tensor] = {
                name: file.get_tensor(name) for name in (file.keys() if names is None else names)
            }
    except (OSError, SafetensorError):
        return None
    for name, tensor in tensors.items():
        if (path, name) not in verified and digests.get(name) != _digest(tensor):
            return None
    return tensors


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_intact(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return _read(path, None, set()) is not None or not path.exists()
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True  # removed in the meantime
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _mark_used(path: Path) -> None:
    if path not in _used:
        _used.add(path)
        with suppress(OSError):  # a cache of another user may be readable only
            os.utime(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{path}: cannot be removed: {error.strerror}; make the folder writable") from None
