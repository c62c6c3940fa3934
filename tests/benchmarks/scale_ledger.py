"""The searcher, scheduler and ledger of a driver without Ray, fed by simulated trials on simulated nodes.

A process of its own prints a row as JSON for each thousand trials that have ended, and one for resuming the study.
"""

import heapq
import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from tests.benchmarks.driver_probe import resident_mb
from tests.benchmarks.sweep_toy import SPACE
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import SweepConfig, load_sweep_config
from tune.loggers.sweep_loggers import SweepLoggers
from tune.search.journal import STUDY_FILE, repair_journal
from tune.search.ledger import TrialLedger
from tune.search.study import open_study
from tune.show.status import study_status
from tune.trial.ray_search import StudyScheduler, StudySearcher
from tune.trial.reports import pack_scalars

__all__ = ["EPOCHS", "simulate"]

EPOCHS = 9


class _Timer:
    """Sums the CPU time of calls by name until ``take``; CPU time, since other processes share the machine."""

    def __init__(self) -> None:
        self._calls: dict[str, list[float]] = {}

    def __call__(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args)
        finally:
            self._calls.setdefault(name, []).append(time.process_time() - started)

    def take(self) -> dict[str, float]:
        """Return milliseconds per call by name, ``longest`` and the sum of all as ``total``; begin anew."""
        calls, self._calls = self._calls, {}
        seconds = {name: sum(found) for name, found in calls.items()}
        means = {name: 1000 * seconds[name] / len(found) for name, found in calls.items()}
        longest = max((max(found) for found in calls.values()), default=0.0)
        return {**means, "longest": 1000 * longest, "total": 1000 * sum(seconds.values())}


class _RayTrial:
    """What the scheduler reads of a trial of Ray."""

    def __init__(self, trial_id: str, config: Mapping[str, Any]) -> None:
        self.trial_id, self.config = trial_id, config


class _SimulatedCluster:
    """Trials in simulated time: each runs for its epochs, whose seconds and losses are random, or until it is stopped.

    Args:
        slots: trials that run at a time.
    """

    def __init__(self, slots: int, searcher: StudySearcher, scheduler: StudyScheduler, timer: _Timer) -> None:
        self._slots, self._searcher, self._scheduler, self._timer = slots, searcher, scheduler, timer
        self._random = random.Random(0)
        self._events: list[tuple[float, int]] = []  # (end of an epoch, number), a heap
        self._running: dict[int, tuple[_RayTrial, int, float]] = {}  # by number: trial, epoch, seconds of an epoch
        self._now = 0.0
        self.asked = self.results = 0
        self._is_finished = False

    def fill(self) -> bool:
        """Start trials until all slots are taken; return whether any trial runs."""
        while len(self._running) < self._slots and not self._is_finished:
            config = self._timer("ask", self._searcher.suggest, str(self.asked))
            if not isinstance(config, dict):  # the budget is used up
                self._is_finished = True
                break
            seconds = self._random.lognormvariate(0, 0.5)
            self._running[config["number"]] = _RayTrial(str(self.asked), config), 0, seconds
            heapq.heappush(self._events, (self._now + seconds, config["number"]))
            self.asked += 1
        return bool(self._running)

    def next_epoch(self) -> None:
        """Report the epoch that ends first, and end its trial if it is stopped or finished."""
        self._now, number = heapq.heappop(self._events)
        trial, epoch, seconds = self._running[number]
        epoch += 1
        self.results += 1
        result = {**pack_scalars(self._scalars(trial.config["params"], epoch)), "epoch": epoch, "done": epoch >= EPOCHS}
        if not result["done"]:
            verdict = self._timer("report", self._scheduler.on_trial_result, None, trial, result)
            if verdict == StudyScheduler.CONTINUE:
                self._running[number] = trial, epoch, seconds
                heapq.heappush(self._events, (self._now + seconds, number))
                return
        del self._running[number]
        # Ray passes the last result on with the end of the trial.
        self._timer("end", self._searcher.on_trial_complete, trial.trial_id, result)

    def _scalars(self, params: Mapping[str, Any], epoch: int) -> dict[str, float]:
        rate, width = math.log10(params["train.learning_rate"]) + 3, params["encoder.width"] / 256 - 1
        loss = rate**2 + width**2 + (params["train.batch_size"] / 32 - 1) ** 2 + self._random.random() + 1 / epoch
        # About as many scalars as an epoch of a real run has.
        return {"val/loss": loss, **{f"val/part{n}": loss / (n + 1) for n in range(30)}}


def simulate(sampler: str, trials: int, slots: int, rows: int, folder: Path) -> None:
    """Run a sweep's searcher, scheduler, ledger and HPARAMS table, and print a row for each ``rows`` trials."""
    file = folder / "sweep.yaml"
    file.write_text(SPACE)
    settings = [f"sweep.trials={trials}", f"sweep.sampler={sampler}", f"sweep.outputs={folder}"]
    config = load_sweep_config(file, [*settings, f"train.epochs={EPOCHS}"])
    timer = _Timer()
    study, ledger, loggers = _open(config, folder, timer)
    searcher = StudySearcher(ledger, lambda: slots)
    storage = SharedFolder(str(folder), "sweep.outputs")
    cluster = _SimulatedCluster(slots, searcher, StudyScheduler(ledger, storage), timer)
    timer.take()
    shown, results, begun = 0, 0, time.perf_counter()
    while cluster.fill():
        cluster.next_epoch()
        timer("tick", ledger.tick)
        while shown < len(ledger.ended):
            number, ending = ledger.ended[shown]
            timer("table", loggers.ended, number, ending.state)
            shown += 1
            if shown % rows == 0 or shown == trials:
                of = shown % rows or rows
                row = {"sampler": sampler, "ended": shown, "epochs": (cluster.results - results) / of, **timer.take()}
                row |= {"rss": resident_mb(), "wall": time.perf_counter() - begun}
                _print({**row, "per_trial": row["total"] / of, "journal": _size_mb(folder / STUDY_FILE)})
                results = cluster.results
    loggers.close()
    ledger.sync()
    begun = time.process_time()
    study_status(study)
    _print({"sampler": sampler, "status": time.process_time() - begun, "best": study.best_value})


def resume(sampler: str, trials: int, folder: Path) -> None:
    """Resume that study with a larger budget, and print a row with the seconds of the parts and the memory."""
    config = load_sweep_config(folder / "sweep.yaml", [f"sweep.trials={trials + 2}", f"sweep.sampler={sampler}"])
    before, timer = resident_mb(), _Timer()
    _, ledger, _ = _open(config, folder, timer)
    timer("ask", ledger.ask)
    timer("ask again", ledger.ask)
    found = {name: ms / 1000 for name, ms in timer.take().items() if name != "longest"}
    _print({"sampler": sampler, "resume": found, "rss": resident_mb() - before})


def _open(config: SweepConfig, folder: Path, timer: _Timer) -> tuple[optuna.Study, TrialLedger, SweepLoggers]:
    """Open study, ledger and table as the driver does."""
    timer("repair", repair_journal, folder)
    epochs = config.run.train.epochs
    study = timer("study", lambda: open_study(folder, config.sweep, create=True, epochs=epochs))
    ledger = timer("ledger", TrialLedger, study, config.search, config.run, folder / "trials", config.sweep)
    loggers = timer("table", SweepLoggers, config, study, folder)
    ledger.watcher = loggers
    return study, ledger, loggers


def _size_mb(file: Path) -> float:
    return file.stat().st_size / 2**20


def _print(row: Mapping[str, Any]) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    job["folder"] = Path(job["folder"])
    {"simulate": simulate, "resume": resume}[job.pop("task")](**job)
