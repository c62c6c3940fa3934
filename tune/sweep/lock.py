"""One driver a sweep: a lock file in its folder that names who drives it.

On one machine the kernel holds the lock (``flock``) and lets go of it when its process dies, however that happens. A
driver on another machine is told by the file's contents and by its heartbeat, the time of the file.
"""

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from nuanced_core.errors import ConfigError, DiskError

__all__ = ["LOCK_FILE", "DriverLock"]

logger = logging.getLogger(__name__)

LOCK_FILE = "driver.lock"
HEARTBEAT = 10.0  # seconds between two
DEAD_AFTER = 60.0  # seconds without one, of a driver on another machine


class DriverLock:
    """Held from its making to ``close``.

    Args:
        folder: of the sweep.

    Raises:
        ConfigError: another driver is at work on this sweep.
        DiskError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        try:
            self._file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DiskError(f"{self._path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._holder()
            self._file.close()
            raise ConfigError(_refusal(folder, holder)) from None
        holder = self._holder()
        if holder and holder.get("host") != socket.gethostname() and self._age() < DEAD_AFTER:
            self._file.close()
            raise ConfigError(_refusal(folder, holder))
        if holder:
            logger.warning("%s: taken over from a driver that is gone (%s)", folder, _named(holder))
        self._write({"host": socket.gethostname(), "pid": os.getpid()})
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """Show that this driver is alive; cheap enough to be called at every turn of a loop."""
        if time.monotonic() - self._beaten > HEARTBEAT:
            self._beaten = time.monotonic()
            with suppress(OSError):  # a disk that is away for a while comes back, or stops the trials itself
                os.utime(self._path)

    def close(self) -> None:
        """Let another driver in; may be called twice."""
        if not self._file.closed:
            self._write({})
            self._file.close()

    def _holder(self) -> dict[str, object]:
        """Who wrote the file, {} if nobody holds it or it cannot be read."""
        self._file.seek(0)
        try:
            found = json.loads(self._file.read() or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _age(self) -> float:
        return time.time() - self._path.stat().st_mtime

    def _write(self, holder: dict[str, object]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(holder))
        self._file.flush()


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'another machine')}"


def _refusal(folder: Path, holder: dict[str, object]) -> str:
    return f"{folder}: {_named(holder)} drives this sweep already; stop it first, or wait until it is done"
