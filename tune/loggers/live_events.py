"""Event files of trials that run on other nodes, fetched from shared storage while the trials run.

A node copies its trial's folder to shared storage after each epoch. An event file only grows, so what is new at its end
is appended to the file here: TensorBoard, which may be reading it, never sees a file that shrinks or is replaced.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nuanced_core.errors import ConfigError, DiskError
from tune.cluster.shared_storage import LIVE_MARK, SharedFolder
from tune.loggers.tensorboard import EVENT_FILE

__all__ = ["LiveEvents"]

logger = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds between the beginnings of two fetches of a trial
_OVERLAP = 64  # bytes that are compared before what follows them is appended


class LiveEvents:
    """Fetches the new events of trials in a background thread; a failure is warned of once, and tried again later.

    Args:
        shared: the sweep's folder in shared storage.
        folder: the sweep's folder.
        interval: least seconds between two fetches of a trial.
    """

    def __init__(self, shared: SharedFolder, folder: Path, interval: float = INTERVAL) -> None:
        self._shared, self._folder, self._interval = shared, folder, interval
        self._thread = ThreadPoolExecutor(1)
        self._due: set[int] = set()  # trials that have reported since their last fetch
        self._begun: dict[int, float] = {}  # when a trial's last fetch began
        self._busy: set[int] = set()
        self._ended: set[int] = set()
        self._locks: dict[int, threading.Lock] = defaultdict(threading.Lock)
        self._has_warned = False

    def reported(self, number: int) -> None:
        """Take note that a trial has new events; they are fetched by a ``tick``."""
        self._due.add(number)
        self._ended.discard(number)

    def tick(self) -> None:
        """Begin the fetches that are due; to be called often."""
        now = time.monotonic()
        for number in sorted(self._due - self._busy):
            if now - self._begun.get(number, -self._interval) >= self._interval:
                self._due.discard(number)
                self._begun[number] = now
                self._busy.add(number)
                self._thread.submit(self._fetch, number)

    def end(self, number: int) -> None:
        """Fetch the last events of a trial, in this thread, and none later: its folder is about to be replaced."""
        with self._locks[number]:
            if number not in self._ended and (self._folder / "trials" / str(number) / LIVE_MARK).exists():
                self._append_new(number)
            self._ended.add(number)

    def close(self) -> None:
        """Wait for a fetch in progress."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, number: int) -> None:
        with self._locks[number]:
            if number not in self._ended:
                self._append_new(number)
        self._busy.discard(number)

    def _append_new(self, number: int) -> None:
        try:
            trial = self._shared.child("trials", str(number))
            folder = self._folder / "trials" / str(number)
            for name in _event_files(trial.names()):
                if not folder.is_dir():
                    folder.mkdir(parents=True)
                    (folder / LIVE_MARK).touch()
                _append(trial, name, folder / name)
        except (OSError, ConfigError, DiskError) as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning("trial %d: its curves cannot be shown while it runs: %s", number, error)


def _event_files(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(EVENT_FILE) and not name.endswith(".part"))


def _append(trial: SharedFolder, name: str, file: Path) -> None:
    """Append to ``file`` what the file ``name`` of the trial has beyond it, unless it is not its continuation."""
    have = file.stat().st_size if file.exists() else 0
    overlap = min(have, _OVERLAP)
    content = trial.read_from(name, have - overlap)
    if overlap:
        with file.open("rb") as local:
            local.seek(have - overlap)
            if local.read() != content[:overlap]:
                return  # another file of that name, which the copy at the trial's end brings
    if len(content) > overlap:
        with file.open("ab") as local:
            local.write(content[overlap:])
