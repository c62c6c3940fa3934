"""The CPU cores and the memory that this process may use: those of the machine, within the limits of its cgroups.

``release_memory`` gives back what it no longer uses.

A container, a batch job or a systemd service has its limits in cgroups, of version 1, version 2, or both (hybrid). A
limit anywhere on the way from the process's cgroup to the root applies; a container sees its part of that way.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import cast

__all__ = ["available_memory", "limit_threads", "memory_limit", "release_memory", "usable_cpus"]

ROOT = Path("/")


def release_memory() -> None:
    """Return freed memory, which glibc keeps for later, to the system; nothing is done where there is no glibc.

    Sentences of different lengths leave gaps: a process that speaks one after the other would grow by gigabytes.
    """
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    with suppress(AttributeError, OSError, TypeError):
        return cast(Callable[[int], int], ctypes.CDLL(None).malloc_trim)
    return None


def usable_cpus(root: Path = ROOT) -> int:
    """Return the number of CPU cores that this process may use: those of its affinity mask, within its CPU quota.

    A quota is rounded down, but is at least 1: half a core is no place for another thread.

    Args:
        root: folder that holds ``proc`` and the mounted cgroups.
    """
    quotas = [quota for folder in _cgroups("cpu", root) if (quota := _cpu_quota(folder)) is not None]
    return max(1, min([_cpus_of_affinity(), *map(int, quotas)]))


def memory_limit(root: Path = ROOT) -> int:
    """Return the bytes of memory that this process can have at most: what is installed, or its cgroups allow.

    Args:
        root: folder that holds ``proc`` and the mounted cgroups.
    """
    return min([_installed_memory(root), *(memory.limit for memory in _memory_of_cgroups(root))])


def available_memory(root: Path = ROOT) -> int:
    """Return the bytes of memory that new processes can use, without swapping and within the limits of the cgroups.

    The file cache does not count as used, because the kernel gives it up when memory is needed.

    Args:
        root: folder that holds ``proc`` and the mounted cgroups.
    """
    left = [memory.limit - memory.used for memory in _memory_of_cgroups(root)]
    available = _meminfo(root).get("MemAvailable", _installed_memory(root))
    return max(0, min([available, *left]))


def limit_threads(root: Path = ROOT) -> None:
    """Limit the threads of torch and NumPy in this process to ``usable_cpus``, if a CPU quota makes them fewer.

    OpenMP counts the affinity mask but not the quota: on 64 cores with a quota of one, 64 threads would wait for each
    other. Threads that wait sleep, where torch is not loaded yet: OpenMP lets them spin, which takes the cores from
    the threads that they wait for if another process computes too. What the user has set in ``OMP_NUM_THREADS`` and
    ``OMP_WAIT_POLICY`` is left.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cpus = usable_cpus(root)
    if "OMP_NUM_THREADS" in os.environ or cpus >= _cpus_of_affinity():
        return
    os.environ["OMP_NUM_THREADS"] = str(cpus)  # read by the libraries when they are loaded
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cpus)


@dataclass(frozen=True)
class _Memory:
    """The memory of one cgroup and of those below it, in bytes; ``used`` does not count the file cache."""

    limit: int
    used: int


def _cpus_of_affinity() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # None on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _installed_memory(root: Path) -> int:
    return _meminfo(root).get("MemTotal", 0) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _meminfo(root: Path) -> dict[str, int]:
    """Return the entries of /proc/meminfo in bytes; empty where there is none, as on macOS."""
    return {name: value * 1024 for name, value in _table(root / "proc" / "meminfo").items()}


def _cpu_quota(folder: Path) -> float | None:
    """Return the number of CPU cores whose time a cgroup may use; None without a limit."""
    quota, _, period = _text(folder / "cpu.max").partition(" ")  # v2: "150000 100000" or "max 100000"
    if not period:  # v1: -1 without a limit
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    # Quotas below 0 and "max" are no number of digits only.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _memory_of_cgroups(root: Path) -> Iterator[_Memory]:
    """Yield the memory of each cgroup that limits it."""
    for folder in _cgroups("memory", root):
        statistics = _table(folder / "memory.stat")
        limits = [_text(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        # v1 also tells the tightest limit of the cgroups above, which a container cannot see.
        limits.append(str(statistics.get("hierarchical_memory_limit", "")))
        limit = min((int(value) for value in limits if value.isdecimal()), default=None)
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if limit is not None:
            yield _Memory(limit, max(0, (int(used) if used.isdecimal() else 0) - _file_cache(statistics)))


def _file_cache(statistics: Mapping[str, int]) -> int:
    """Return the bytes of files that a cgroup and those below it keep in memory, from its ``memory.stat``.

    Like MemAvailable, this counts pages in active use too, such as those of cached clips. Pages of tmpfs, which cannot
    be given up, are not among them.
    """
    prefix = "total_" if "total_inactive_file" in statistics else ""  # v1: without it, of the one cgroup alone
    return sum(statistics.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups of a controller, from its own up to the highest that is visible.

    Both versions are looked through, since the files of a controller exist only in the one that it is attached to.
    """
    for v1_controller in (controller, ""):
        group = _cgroup_of_process(v1_controller, root)
        mounts = list(_mounts(v1_controller, root))
        if group is None or not mounts:
            continue
        inside = [mount for mount in mounts if group.is_relative_to(mount.top) and ".." not in group.parts]
        for mount in inside:
            below = group.relative_to(mount.top)
            yield from (mount.folder / part for part in (below, *below.parents))
        if not inside:  # the cgroup's name is one of the host, of whose tree a container mounts its own part
            yield mounts[0].folder


def _cgroup_of_process(v1_controller: str, root: Path) -> PurePosixPath | None:
    """Return the name of this process's cgroup of a v1 controller, or of version 2 if that is empty."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, _, entry = line.partition(":")  # "4:cpu,cpuacct:/a"; version 2: "0::/a"
        controllers, _, name = entry.partition(":")
        if name and v1_controller in controllers.split(","):
            return PurePosixPath(name)
    return None


@dataclass(frozen=True)
class _Mount:
    """A mounted tree of cgroups: the name of the cgroup at its top, and the folder of that."""

    top: PurePosixPath
    folder: Path


def _mounts(v1_controller: str, root: Path) -> Iterator[_Mount]:
    """Yield the mounts of a v1 controller, or of version 2 if that is empty."""
    for line in _text(root / "proc" / "self" / "mountinfo").splitlines():
        place, _, system = line.partition(" - ")
        with suppress(IndexError):  # a line of another form
            fields, (kind, *source_and_options) = place.split(" "), system.split(" ")
            wanted = "cgroup" if v1_controller else "cgroup2"
            if kind == wanted and (not v1_controller or v1_controller in source_and_options[-1].split(",")):
                yield _Mount(PurePosixPath(_unescaped(fields[3])), root / _unescaped(fields[4]).lstrip("/"))


def _unescaped(path: str) -> str:
    """Return a path of mountinfo, where a space is written as the octal number \\040, for example."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _table(file: Path) -> dict[str, int]:
    """Return the numbers of a file with one name and number in each line; lines of another form are left out."""
    found = {}
    for line in _text(file).splitlines():
        with suppress(ValueError):
            name, value = line.replace(":", " ").split()[:2]
            found[name] = int(value)
    return found


def _text(file: Path) -> str:
    """Return the content of a file, or an empty string if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
