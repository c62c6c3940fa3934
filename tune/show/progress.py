"""What one sees while a sweep runs: a live table of its trials in a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune.search.ledger import TrialLedger
from tune.search.study import METRIC
from tune.show.report import short_params
from tune.trial.reports import unpack_scalars

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

# Above and below the rows: header, rules and the line of counts.
_TABLE_FRAME_LINES = 6
_STYLES = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "running": "cyan",
    "waiting": "dim",
    "interrupted": "magenta",
}
_REFRESH = 0.25  # seconds between two drawings of the table
_PATIENCE = 10.0  # seconds that a trial waits before it is told for what


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
    note: str = ""


class Progress(Callback):  # type: ignore[misc]
    """Follows the trials for Ray; what it says of their ends is what the study was told."""

    def __init__(
        self,
        ledger: TrialLedger,
        budget: int | None,
        console: Console | None = None,
        on_turn: Callable[[], object] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._on_turn = on_turn
        self._seen = 0  # of the ledger's endings
        self._best: int | None = None
        self._waiting: dict[str, float] = {}  # since when, by Ray's number of the trial
        self._alive: list[Any] = []  # Ray's trials that have not ended
        self._known = 0  # so many of Ray's trials have been looked at
        self._budget = budget
        self._rows: dict[int, _Row] = {}
        self._console = console if console is not None and console.is_terminal else None
        self._live: Live | None = None
        self._shown = 0.0  # when the table was drawn last

    def __getstate__(self) -> dict[str, Any]:
        # Ray's Tuner pickles its callbacks to restore them some day, which we never ask for.
        return {}

    def setup(self, **info: Any) -> None:
        """Begin the live table, where there is a terminal."""
        if self._console is not None:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
            self._show()

    def close(self) -> None:
        """Leave the table as it is; may be called twice."""
        self._note_endings()
        if self._live is not None:
            self._show(at_once=True)
            self._live.stop()
            self._live = None

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial has got its process."""
        config = trial.config
        row = _Row(config["number"], config["epochs"], short_params(config["params"]))
        self._rows[row.number] = row
        self._line(f"trial {row.number} starts: {row.params}")

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any) -> None:
        """A trial has finished an epoch."""
        row = self._rows[trial.config["number"]]
        told = unpack_scalars(result)
        if METRIC not in told:
            return
        row.epoch, row.loss, row.skill = told["epoch"], told[METRIC], told.get("val/skill")
        row.best = min(row.best, told[METRIC])
        skill = "" if row.skill is None else f"  val/skill {row.skill:.3f}"
        self._line(f"trial {row.number} epoch {row.epoch}/{row.epochs}: {METRIC} {row.loss:.4f}{skill}")

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Ray has handled an event, or waited for one."""
        self._on_turn()
        self._note_endings()
        if self._live is not None:
            self._show()
        self._alive = [trial for trial in (*self._alive, *trials[self._known :]) if not trial.is_finished()]
        self._known = len(trials)
        for trial in self._alive:
            self._note_waiting(trial)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial's process died, and it will go on from its checkpoint in another one."""
        number = trial.config["number"]
        self._aside(f"trial {number}: its process died; it goes on from its last checkpoint")

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        """Ray has stopped all trials."""
        self._note_endings()

    def _note_endings(self) -> None:
        """Also of the trials that never got a process."""
        ended = self._ledger.ended
        while self._seen < len(ended):
            number, ending = ended[self._seen]
            self._seen += 1
            row = self._rows.setdefault(number, _Row(number, 0, ""))
            row.state = ending.state
            row.note = ending.error or ""
            if ending.state == "complete":
                row.loss = ending.value
                if self._best is None or row.best < self._rows[self._best].best:
                    self._best = number
            best = "  (best so far)" if number == self._best else ""
            value = "" if ending.value is None else f": {METRIC} {ending.value:.4f}"
            after = f" after epoch {row.epoch}" if ending.state == "pruned" else ""
            self._line(f"trial {number} {ending.state}{after}{value}{f': {row.note}' if row.note else ''}{best}")

    def _note_waiting(self, trial: Any) -> None:
        """Tell of a trial that has had no process for a while what it waits for."""
        if trial.status != "PENDING":
            self._waiting.pop(trial.trial_id, None)
            return
        since = self._waiting.setdefault(trial.trial_id, time.monotonic())
        if 0 <= since < time.monotonic() - _PATIENCE:
            self._waiting[trial.trial_id] = -1.0  # told
            self._aside(f"trial {trial.config['number']} waits for {_wanted(trial)}")

    def _aside(self, line: str) -> None:
        """What no row of the table says."""
        if self._live is None:
            logger.info("%s", line)
        else:
            self._live.console.print(line)

    def _line(self, line: str) -> None:
        if self._live is None:
            logger.info("%s", line)
        else:
            self._show()

    def _show(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._live is not None and self._console is not None and (at_once or now - self._shown > _REFRESH):
            self._shown = now
            self._live.update(self._table(self._console.height - _TABLE_FRAME_LINES), refresh=True)

    def _table(self, room: int) -> Group:
        """The best trial, those that run and the latest others, as many as fit into ``room`` lines."""
        best = self._best
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("trial", "state", "epoch", METRIC, "val/skill"):
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
                Text(row.note or row.params),
            )
        ended = sum(row.state != "running" for row in self._rows.values())
        budget = "" if self._budget is None else f" of {self._budget}"
        return Group(table, Text(f"{ended}{budget} trials ended; * is the best", style="dim"))


def _wanted(trial: Any) -> str:
    """What a trial needs, beside what Ray has free: ``1 CPU (0 free of 2), 0.25 GPU (0 free of 1)``."""
    import ray

    there, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(
        f"{amount:g} {name} ({free.get(name, 0):g} free of {there.get(name, 0):g})"
        for name, amount in trial.placement_group_factory.required_resources.items()
        if amount
    )
