"""Real cgroups for tests: commands run with the limits of a container."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds


@contextmanager
def cgroup(*, cpus: float, memory: int) -> Iterator[list[str]]:
    """Make a cgroup, of the version that this machine has, and remove it with its processes at the end of the context.

    Skips the test where cgroups cannot be made.

    Returns:
        The words to put before a command, so that it runs in the cgroup.
    """
    folders: list[Path] = []
    try:
        try:
            _fill(folders, cpus, memory)
        except OSError as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        enter = "; ".join(f'echo $$ > "{folder}/cgroup.procs"' for folder in folders)
        yield ["sh", "-c", f'set -e; {enter}; exec "$@"', "sh"]
    finally:
        for folder in folders:
            _remove(folder)


def _fill(folders: list[Path], cpus: float, memory: int) -> None:
    name, quota = f"nuanced-test-{os.getpid()}", str(int(cpus * _PERIOD))
    v1 = (_ROOT / "memory" / "memory.limit_in_bytes").exists()
    if not v1:
        (_ROOT / "cgroup.subtree_control").write_text("+cpu +memory")
    for controller in ("cpu", "memory") if v1 else ("",):
        folder = _ROOT / controller / name
        folder.mkdir()
        folders.append(folder)
    limits = {"cpu.cfs_quota_us": quota, "memory.limit_in_bytes": str(memory)}
    limits = limits if v1 else {"cpu.max": f"{quota} {_PERIOD}", "memory.max": str(memory)}
    for folder, (file, value) in zip(folders if v1 else folders * 2, limits.items(), strict=True):
        (folder / file).write_text(value)


def _remove(folder: Path) -> None:
    for _ in range(100):
        with suppress(OSError):
            for process in (folder / "cgroup.procs").read_text().split():
                os.kill(int(process), signal.SIGKILL)
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)
