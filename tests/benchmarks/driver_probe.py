"""Measurements of a sweep's driver, taken in its process while it runs."""

import os
import sys
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.tune as ray_tune

from tune.trial.reports import unpack_scalars

__all__ = ["WORKERS", "DriverProbe", "resident_mb"]

WORKERS = 2
SETTLED_TRIALS = 50  # after which growth of memory is counted
WINDOW_TRIALS = 100  # at the start and the end of a sweep, whose callbacks are compared
LOG_INTERVAL = 250  # trials between two lines on stderr


def resident_mb(process: int | str = "self") -> float:
    """Return the resident memory of a process in MiB, of this one by default.

    Raises:
        OSError: the process has ended.
    """
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class DriverProbe(ray_tune.Callback):  # type: ignore[misc]
    """Measures a driver in its process: when epochs ran, how long its callbacks took, how much memory it holds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.results = 0
        self.callback_seconds = 0.0
        self.first_cpu = 0.0  # CPU time of this process at the first result
        self.slept = 0.0  # seconds, of all epochs
        self.spans: dict[int, tuple[float, float]] = {}  # by process, its first epoch's start and its last one's end
        # For the start, then for the end of each trial: results, callback_seconds, memory. Flat, to stay small.
        self.rows = array("d", [0.0, 0.0, resident_mb()])

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, *_: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Count an epoch that was reported to the driver."""
        self.results += 1
        self.first_cpu = self.first_cpu or time.process_time()
        scalars = unpack_scalars(result)
        started, ended = scalars["toy/started"], scalars["toy/ended"]
        self.slept += ended - started
        self.spans[result["pid"]] = self.spans.get(result["pid"], (started, ended))[0], ended

    def time_methods(self, owner: type, *methods: str, ends_trial: str = "") -> None:
        """Time methods of a class from now on; when the method ``ends_trial`` returns, a trial has ended."""
        for method in methods:
            setattr(owner, method, self._timed(getattr(owner, method), method == ends_trial))

    def _timed(self, function: Any, ends_trial: bool) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.callback_seconds += time.perf_counter() - started
                if ends_trial:
                    self._add_row()

        return timed

    def _add_row(self) -> None:
        self.rows.extend((self.results, self.callback_seconds, resident_mb()))
        ended = self.ended
        if ended % LOG_INTERVAL == 0:
            print(f"{self.name}: {ended} trials, {time.time() - self.first_start:.0f} s", file=sys.stderr, flush=True)

    @property
    def first_start(self) -> float:
        """When the first epoch began (Unix time)."""
        return min(start for start, _ in self.spans.values())

    @property
    def ended(self) -> int:
        """The number of trials that have ended."""
        return len(self.rows) // 3 - 1

    def _callback_ms(self, first: int, last: int) -> float:
        """Return milliseconds in the callbacks per result, from the end of one trial to the end of another."""
        (results, seconds, _), (last_results, last_seconds, _) = (
            self.rows[3 * row : 3 * row + 3] for row in (first, last)
        )
        return 1000 * (last_seconds - seconds) / max(1.0, last_results - results)

    def summary(self, call_seconds: float) -> dict[str, float]:
        """Return the measurements; ``call_seconds`` is the duration of the whole call."""
        wall, ended = max(end for _, end in self.spans.values()) - self.first_start, self.ended
        settled = min(SETTLED_TRIALS, ended // 2)
        growth = self.rows[3 * ended + 2] - self.rows[3 * settled + 2]
        return {
            "trials": ended,
            "results": self.results,
            "wall_s": wall,
            "call_s": call_seconds,
            "efficiency": self.slept / WORKERS / wall,
            "busy": self.slept / sum(end - start for start, end in self.spans.values()),
            "with_startup": self.slept / WORKERS / call_seconds,
            "ms_per_trial": 1000 * wall / ended,
            "ms_per_result": 1000 * wall / self.results,
            "cpu_ms_per_result": 1000 * (time.process_time() - self.first_cpu) / self.results,
            "callbacks_ms_per_result": self._callback_ms(0, ended),
            "callbacks_ms_first": self._callback_ms(0, min(WINDOW_TRIALS, ended)),
            "callbacks_ms_last": self._callback_ms(max(0, ended - WINDOW_TRIALS), ended),
            "rss_growth_mb": growth,
            "rss_growth_mb_per_1000": 1000 * growth / (ended - settled),
        }
