"""The cache of what is computed once: entries named by what they depend on, verified by their hashes, bounded in size.

Layout: ``<folder>/<kind>/<two digits>/<key>.safetensors``, tensors by name, the SHA-256 of each in the metadata. A
process hashes a tensor when it first reads it; a damaged entry counts as missing. The time of an entry's file says when
it was last used. Model files (``weights/``) lie in the same folder and are never touched here.
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


STALE_PART_SECONDS = 3600  # a .part file that old has lost its writer

Kind = Literal["clips", "features", "windows", "baselines"]
KINDS: tuple[Kind, ...] = ("clips", "features", "windows", "baselines")

_NAME = re.compile(r"[0-9a-f]{64}\.(safetensors|json)")
_PART = re.compile(r"[0-9a-f]{64}\.(safetensors|json)\.[0-9a-f]+\.part")
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([kmgt]?)b?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

# Of this process: tensors whose hashes agreed, so that none is hashed twice, and files in use, which are not pruned.
_verified: set[tuple[Path, str]] = set()
_used: set[Path] = set()


@dataclass(frozen=True)
class Entry:
    """A file of the cache."""

    kind: Kind
    path: Path
    bytes: int
    used: float  # seconds since the epoch


class Cache:
    """Entries of tensors in a folder, which processes may share: each is written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, kind: Kind, key: str) -> bool:
        """Whether there is such an entry, which then counts as used; damage is noticed when it is read."""
        path = self._path(kind, key)
        if not path.is_file():
            return False
        _mark_used(path)
        return True

    def names(self, kind: Kind, key: str) -> list[str] | None:
        """Names of an entry's tensors, or None if it is missing or damaged."""
        try:
            with safe_open(self._path(kind, key), framework="pt") as file:
                return list(file.keys())
        except (OSError, SafetensorError):
            return None

    def load(self, kind: Kind, key: str, names: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        """Tensors of an entry (all, or those named), memory-mapped, or None if it is missing or damaged."""
        path = self._path(kind, key)
        found = _read(path, names, _verified)
        if found is None:
            return None
        _verified.update((path, name) for name in found)
        _mark_used(path)
        return found

    def save(self, kind: Kind, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write an entry, in place of a damaged one if there is one; returns the tensors.

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
                "'nuanced cache --prune SIZE', or name another folder with NUANCED_CACHE"
            ) from None
        _used.add(path)
        return contents

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first."""
        found = []
        for kind, path in self._files(_NAME):
            with suppress(OSError):  # gone meanwhile
                stat = path.stat()
                found.append(Entry(kind, path, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda entry: (entry.used, entry.path))

    def prune(self, limit: int) -> list[Entry]:
        """Remove the least recently used entries until ``limit`` bytes are left; returns them.

        What this process has read, written or found is kept. What dead writers left is removed too.

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
        """Hash all entries again and remove those that are damaged; returns them.

        Raises:
            DiskError: an entry cannot be removed.
        """
        damaged = [entry for entry in self.entries() if not _is_whole(entry.path)]
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
    """Inside it no other process of this machine is inside the same; the kernel lets go when a process dies.

    Raises:
        DiskError: the file cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("a")
    except OSError as error:
        raise DiskError(f"{file}: cannot be made: {error.strerror}; name another folder with NUANCED_CACHE") from None
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def cache_limit() -> int | None:
    """The most bytes that entries may take, from $NUANCED_CACHE_LIMIT; None: any number.

    Raises:
        ConfigError: it is no size.
    """
    text = os.environ.get("NUANCED_CACHE_LIMIT", "").strip()
    return parse_size(text, "NUANCED_CACHE_LIMIT") if text else None


def parse_size(text: str, place: str) -> int:
    """Bytes of a size such as 10GB, 500MB or 0 (GB is 1e9 bytes); ``place`` is named in errors.

    Raises:
        ConfigError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"{place}: {text!r} is no size; write 10GB, 500MB or 0")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def format_size(count: int) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _read(path: Path, names: Sequence[str] | None, verified: set[tuple[Path, str]]) -> dict[str, Tensor] | None:
    """Tensors of a file, hashed unless they are among those verified; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            digests = file.metadata() or {}
            found: dict[str, Tensor] = {
                name: file.get_tensor(name) for name in (file.keys() if names is None else names)
            }
    except (OSError, SafetensorError):
        return None
    for name, tensor in found.items():
        if (path, name) not in verified and digests.get(name) != _digest(tensor):
            return None
    return found


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return _read(path, None, set()) is not None or not path.exists()
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True  # removed meanwhile
    except (OSError, ValueError):
        return False
    return True


def _mark_used(path: Path) -> None:
    if path not in _used:
        _used.add(path)
        with suppress(OSError):  # a cache of somebody else's can be read all the same
            os.utime(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{path}: cannot be removed: {error.strerror}; make the folder writable") from None
