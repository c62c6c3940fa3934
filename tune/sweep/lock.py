"""The driver lock: a file in the folder of a sweep, or of a single run, that names the one process at work there.

On one machine the kernel holds the lock (``flock``) and releases it when the process dies, however that happens. A
driver on another machine is recognized by the file's contents and its heartbeat, which changes the file's modification
time.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from nuanced_core.errors import ConfigError, DiskError

__all__ = ["LOCK_FILE", "DriverLock"]

logger = logging.getLogger(__name__)

LOCK_FILE = "driver.lock"
HEARTBEAT = 10.0  # seconds between two heartbeats
DEAD_AFTER = 30.0  # seconds without a heartbeat after which a driver on another machine counts as dead
_LOOK = 0.5  # seconds between two looks at it


class DriverLock:
    """A lock that is held from its construction until ``close``.

    Args:
        folder: of the sweep or the run.

    Raises:
        ConfigError: another process holds it.
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
        if holder and holder.get("host") != socket.gethostname() and self._is_refreshed(holder):
            self._file.close()
            raise ConfigError(_refusal(folder, holder))
        if holder:
            logger.warning("%s: taken over from a driver that no longer runs (%s)", folder, _named(holder))
        self._write({"host": socket.gethostname(), "pid": os.getpid()})
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        """Refresh the heartbeat, whatever the driver is at: it may prepare nodes, or copy, for many minutes."""
        while not self._closed.wait(HEARTBEAT):
            with suppress(OSError):  # a disk that is unavailable for a while comes back, or stops the trials itself
                os.utime(self._path)

    def close(self) -> None:
        """Release the lock; may be called twice."""
        self._closed.set()
        if not self._file.closed:
            self._write({})
            self._file.close()

    def _holder(self) -> dict[str, object]:
        """The contents of the file: the driver that holds the lock, {} if none does or the file cannot be read."""
        self._file.seek(0)
        try:
            found = json.loads(self._file.read() or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _is_refreshed(self, holder: dict[str, object]) -> bool:
        """Watch the file for ``DEAD_AFTER``: its age says nothing if the clock of that machine is another."""
        logger.info("%s: is watched for %g s: does %s still run?", self._path, DEAD_AFTER, _named(holder))
        before, until = self._modified(), time.monotonic() + DEAD_AFTER
        while time.monotonic() < until:
            time.sleep(_LOOK)
            if self._modified() != before:
                return True
        return False

    def _modified(self) -> int:
        with self._path.open(encoding="utf-8") as file:  # network file systems look again when a file is opened
            return os.fstat(file.fileno()).st_mtime_ns

    def _write(self, holder: dict[str, object]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(holder))
        self._file.flush()


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'another machine')}"


def _refusal(folder: Path, holder: dict[str, object]) -> str:
    return f"{folder}: {_named(holder)} is at work here already; stop it first, or wait until it is done"
