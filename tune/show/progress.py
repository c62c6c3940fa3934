"""Progress of a running sweep: a live table of its trials in a terminal, log lines elsewhere."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nuanced_core.progress import leave_closed_terminal
from tune.search.ledger import TrialLedger
from tune.search.study import METRIC
from tune.show.report import short_params
from tune.trial.reports import unpack_scalars

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

# Lines of the table above and below its rows: header, rules and the counts.
_TABLE_FRAME_LINES = 7
_STYLES = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "running": "cyan",
    "waiting": "dim",
    "interrupted": "magenta",
}
# What the best trial is compared with, by the first part of the scalar's name.
_BASELINES = {"baseline": "mean voice", "nearest": "nearest", "ridge": "ridge", "oracle": "oracle"}
_REFRESH_INTERVAL = 0.25  # seconds between two drawings of the table
_WAIT_BEFORE_LOG = 10.0  # seconds that a trial waits for resources before that is logged


@dataclass
class _Row:
    number: int
    epochs: int
    params: str
    state: str = "running"
    epoch: int = 0
    loss: float | None = None
    best: float = float("inf")
    skill: float | None = None
    identity: float | None = None  # of validation people
    memory: float | None = None  # GB, largest so far: of the GPU, or on the CPU of the process
    baselines: dict[str, float] = field(default_factory=dict)  # by name, in the terms of this trial


class Progress(Callback):  # type: ignore[misc]
    """Shows the trials of a sweep as Ray runs them; how they end is read from the ledger, as the study records it.

    Args:
        ledger: of the sweep's study.
        budget: number of trials, or None if that is not limited.
        console: gets the live table if it is a terminal and not quiet. Log records belong on the same console, which
            then prints them above the table.
        on_turn: called at each turn of Ray's loop.
        earlier: of the trials that an earlier driver ended, the number, and the best one's ``val/loss`` and number.
    """

    def __init__(
        self,
        ledger: TrialLedger,
        budget: int | None,
        console: Console | None = None,
        on_turn: Callable[[], object] = lambda: None,
        earlier: tuple[int, tuple[float, int] | None] = (0, None),
    ) -> None:
        self._ledger = ledger
        self._on_turn = on_turn
        self._endings_shown = 0
        self._ended_before = earlier[0]
        self._best_loss: float = earlier[1][0] if earlier[1] else math.inf
        self._best: int | None = earlier[1][1] if earlier[1] else None
        self._waiting: dict[str, float] = {}  # start of the wait by Ray's id of the trial; negative once it is logged
        self._unfinished: list[Any] = []  # Ray's trials
        self._trials_seen = 0  # number of Ray's trials so far
        self._budget = budget
        self._rows: dict[int, _Row] = {}
        self._console = console if console is not None and console.is_terminal and not console.quiet else None
        self._live: Live | None = None
        self._drawn = 0.0  # time of the last drawing
        self._started = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Ray's Tuner pickles its callbacks for Tuner.restore, which is never used here.
        return {}

    def setup(self, **info: Any) -> None:
        """Start the live table, if there is a terminal."""
        if self._console is not None:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
            self._draw()

    def close(self) -> None:
        """Draw the table a last time and stop it; may be called twice."""
        leave_closed_terminal()
        self._show_endings()
        if self._live is not None:
            self._draw(at_once=True)
            self._live.stop()
            self._live = None

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Show a trial that has got its process."""
        config = trial.config
        self._ledger.set_process(config["number"], True)
        row = _Row(config["number"], config["epochs"], short_params(config["params"]))
        self._rows[row.number] = row
        self._show_event(f"trial {row.number} starts: {row.params}")

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Show an epoch that a trial has finished."""
        row = self._rows[trial.config["number"]]
        scalars = unpack_scalars(result)
        if METRIC not in scalars:
            return
        row.epoch, row.loss, row.skill = scalars["epoch"], scalars[METRIC], scalars.get("val/skill")
        row.identity = scalars.get("val/identity")
        row.best = min(row.best, scalars[METRIC])
        row.memory = max(filter(None, (row.memory, scalars.get("train/peak_memory_gb"))), default=None)
        row.baselines = {
            shown: scalars[f"{name}/loss"] for name, shown in _BASELINES.items() if f"{name}/loss" in scalars
        }
        skill = "" if row.skill is None else f"  val/skill {row.skill:.3f}"
        identity = "" if row.identity is None else f"  val/identity {row.identity:.3f}"
        self._show_event(f"trial {row.number} epoch {row.epoch}/{row.epochs}: {METRIC} {row.loss:.4f}{skill}{identity}")

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Follow a turn of Ray's loop: an event was handled, or none came."""
        self._on_turn()
        self._show_endings()
        self._draw()
        self._unfinished = [
            trial for trial in (*self._unfinished, *trials[self._trials_seen :]) if not trial.is_finished()
        ]
        self._trials_seen = len(trials)
        for trial in self._unfinished:
            self._log_waiting(trial)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Warn that a trial's process died; another process continues the trial from its checkpoint."""
        number = trial.config["number"]
        self._ledger.set_process(number, False)
        logger.warning("trial %d: its process died; it continues from its last checkpoint", number)

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        """Show the last endings, when Ray has stopped all trials."""
        self._show_endings()

    def _show_endings(self) -> None:
        """Show how trials ended since the last call, including trials that never got a process."""
        ended = self._ledger.ended
        while self._endings_shown < len(ended):
            number, ending = ended[self._endings_shown]
            self._endings_shown += 1
            row = self._rows.setdefault(number, _Row(number, 0, ""))
            row.state = ending.state
            if ending.state == "complete":
                row.loss = ending.value
                if ending.value is not None and ending.value < self._best_loss:
                    self._best_loss, self._best = ending.value, number
            best = "  (best so far)" if number == self._best else ""
            value = "" if ending.value is None else f": {METRIC} {ending.value:.4f}"
            after = f" after epoch {row.epoch}" if ending.state == "pruned" else ""
            line = f"trial {number} {ending.state}{after}{value}{f': {ending.error}' if ending.error else ''}{best}"
            self._show_event(line, logging.WARNING if ending.state == "failed" else logging.INFO)

    def _log_waiting(self, trial: Any) -> None:
        """Log what a trial waits for that has had no process for a while."""
        if trial.status != "PENDING":
            self._waiting.pop(trial.trial_id, None)
            return
        since = self._waiting.setdefault(trial.trial_id, time.monotonic())
        if 0 <= since < time.monotonic() - _WAIT_BEFORE_LOG:
            self._waiting[trial.trial_id] = -1.0
            logger.info("trial %d waits for %s", trial.config["number"], _requested_resources(trial))

    def _show_event(self, line: str, level: int = logging.INFO) -> None:
        """Log an event: in a terminal above the table if it is a warning, else below INFO, since the table shows it."""
        logger.log(logging.DEBUG if self._live is not None and level < logging.WARNING else level, "%s", line)
        self._draw()

    def _draw(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None and self._console is not None and (at_once or now - self._drawn > _REFRESH_INTERVAL):
            self._drawn = now
            try:
                self._live.update(self._table(self._console.height - _TABLE_FRAME_LINES), refresh=True)
            except OSError:  # the terminal was closed, and its signal is ignored
                leave_closed_terminal()

    def _table(self, room: int) -> Group:
        """Return a table of at most ``room`` rows: the best trial, the running ones, and the latest of the others."""
        best = self._best
        table = Table(box=None, pad_edge=False, header_style="bold")
        people = ["val/identity"] if any(row.identity is not None for row in self._rows.values()) else []
        for column in ("trial", "state", "epoch", METRIC, "val/skill", *people, "GB"):
            table.add_column(column, no_wrap=True)
        table.add_column("settings", overflow="ellipsis", no_wrap=True)
        ranked = sorted(self._rows.values(), key=lambda row: (row.number == best, row.state == "running", row.number))
        for row in sorted(ranked[-max(room, 1) :], key=lambda row: row.number):
            table.add_row(
                f"{row.number}{'*' if row.number == best else ''}",
                Text(row.state, style=_STYLES[row.state]),
                f"{row.epoch}/{row.epochs}",
                "" if row.loss is None else f"{row.loss:.4f}",
                "" if row.skill is None else f"{row.skill:.3f}",
                *("" if row.identity is None else f"{row.identity:.3f}" for _ in people),
                "" if row.memory is None else f"{row.memory:.1f}",
                Text(row.params),
            )
        return Group(table, *(Text(line, style="dim", no_wrap=True) for line in self._summary()))

    def _summary(self) -> list[str]:
        """Return the lines below the table: the lowest loss beside the baselines, and how much is left."""
        lines = []
        lowest = min(
            (row for row in self._rows.values() if row.state != "failed"), key=lambda row: row.best, default=None
        )
        if self._best is not None and (lowest is None or self._best_loss < lowest.best):
            lines.append(f"lowest {METRIC} so far: {self._best_loss:.4f}, trial {self._best}")
        elif lowest is not None and lowest.best < math.inf:
            others = ", ".join(f"{name} {loss:.4f}" for name, loss in lowest.baselines.items())
            beside = f" ({others})" if others else ""
            lines.append(f"lowest {METRIC} so far: {lowest.best:.4f}, trial {lowest.number}{beside}")
        ended = sum(row.state != "running" for row in self._rows.values())
        budget = "" if self._budget is None else f" of {self._budget}"
        left = self._seconds_left(ended)
        about = f", about {_duration(left)} left" if left else ""
        return [*lines, f"{self._ended_before + ended}{budget} trials ended{about}; * is the best"]

    def _seconds_left(self, ended: int) -> float | None:
        """Estimate the time until the budget is met, from the trials that have ended; None if nothing tells it."""
        open_ones = None if self._budget is None else self._budget - self._ended_before - ended
        if not ended or open_ones is None or open_ones <= 0:
            return None
        return (time.monotonic() - self._started) / ended * open_ones


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _requested_resources(trial: Any) -> str:
    """Return what a trial needs and what Ray has free: ``1 CPU (0 free of 2), 2.4 GB (0.1 free of 5)``."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    texts = []
    for name, amount in trial.placement_group_factory.required_resources.items():
        scale, unit = (1e-9, "GB") if name == "memory" else (1.0, name)
        if amount:
            has, of = (scale * found.get(name, 0) for found in (free, total))
            texts.append(f"{scale * amount:.3g} {unit} ({has:.3g} free of {of:.3g})")
    return ", ".join(texts)
