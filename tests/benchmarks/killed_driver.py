"""The driver of a toy sweep that is killed at random moments: the whole one, or all of it but Ray's loop."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cluster import disk
from tune.cluster.machines import Resources
from tune.config.sweep_config import load_sweep_config
from tune.sweep import trials as sweep_trials
from tune.sweep.driver import SweepServices, resume_sweep, run_sweep
from tune.trial.protocol import Report
from tune.trial.ray_search import StudyScheduler, StudySearcher
from tune.trial.reports import pack_scalars

if TYPE_CHECKING:
    from nuanced_core.config.settings import RunConfig

__all__ = ["EPOCHS", "NAME", "drive_with_ray", "drive_without_ray", "write_settings"]

EPOCHS = 3
NAME = "killed"  # of the sweep
CONCURRENT = 4
CHECKPOINT, TRAINED = "checkpoint.json", "trained.jsonl"  # in the folder of a trial
SPACE = """
search:
  train.learning_rate: {low: 1.0e-5, high: 1.0e-1, log: true}
  encoder.width: {low: 32, high: 512}
"""


class KilledRun:
    """A toy run that writes a checkpoint after each epoch, whole or not at all, and notes each epoch that it trains."""

    def __init__(self, config: "RunConfig", folder: Path, report: Report | None) -> None:
        self._folder, self._rate = folder, config.train.learning_rate
        file = folder / CHECKPOINT
        kept = json.loads(file.read_text()) if file.exists() else {"epoch": 0, "scalars": {}}
        self.epoch: int = kept["epoch"]
        self.scalars: dict[str, float] = kept["scalars"]

    @property
    def finished(self) -> bool:
        return self.epoch >= EPOCHS

    def run_epoch(self) -> dict[str, float]:
        with (self._folder / TRAINED).open("a") as file:
            file.write(json.dumps([self.epoch + 1, self._rate]) + "\n")
        self.epoch += 1
        self.scalars = {"val/loss": self._rate + 1 / self.epoch}
        part = self._folder / f"{CHECKPOINT}.part"
        part.write_text(json.dumps({"epoch": self.epoch, "scalars": self.scalars}))
        part.replace(self._folder / CHECKPOINT)
        return self.scalars

    def close(self) -> None: ...


class _Prepared:
    def hashes(self) -> dict[str, str]:
        return {"toy": "0" * 64}


class _NoRay:
    """A machine that starts no Ray."""

    options = ""

    def joined(self) -> AbstractContextManager[None]:
        return nullcontext()

    def started(self) -> AbstractContextManager[None]:
        return nullcontext()

    def resources(self) -> list[Resources]:
        return [Resources(CONCURRENT, 0)]


class _RayTrial:
    """What searcher, scheduler and progress read of a trial of Ray, and the trial's run."""

    status = "RUNNING"

    def __init__(self, trial_id: str, config: Mapping[str, Any], run: KilledRun) -> None:
        self.trial_id, self.config, self.run = trial_id, config, run
        self.is_first_step = True

    def step(self) -> dict[str, Any]:
        """Return an epoch as ``StyleEncoderTrial`` does: first the one that a killed driver may not know of."""
        is_known = self.is_first_step and self.run.epoch
        self.is_first_step = False
        scalars = self.run.scalars if is_known else self.run.run_epoch()
        return {**pack_scalars(scalars), "epoch": self.run.epoch, "done": self.run.finished}


def _loop(sweep: Any, services: Any, plan: Any, progress: Any, stop: Any, *, begun: Callable[[], None]) -> None:
    """Run trials in this process, an epoch of each in turn, and call what Ray's loop calls."""
    searcher = StudySearcher(sweep.ledger, lambda: CONCURRENT)
    scheduler = StudyScheduler(sweep.ledger, sweep.place.storage)
    progress.setup()
    running: list[_RayTrial] = []
    names: Iterator[int] = iter(range(10**9))
    begun()
    while True:
        while len(running) < CONCURRENT:
            name = str(next(names))
            config = searcher.suggest(name)
            if not isinstance(config, dict):
                break
            folder = Path(config["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            run = KilledRun(sweep.config.search.apply(sweep.config.run, config["params"]), folder, None)
            running.append(_RayTrial(name, config, run))
            progress.on_trial_start(0, [], running[-1])
        if not running:
            return
        trial = running.pop(0)
        result = trial.step()
        progress.on_trial_result(0, [], trial, result)
        if result["done"] or scheduler.on_trial_result(None, trial, result) != StudyScheduler.CONTINUE:
            searcher.on_trial_complete(trial.trial_id, result)
        else:
            running.append(trial)
        progress.on_step_end(0, [])


def write_settings(folder: Path, trials: int) -> None:
    """Write the YAML of the sweep; its folder will be ``NAME`` in ``folder``."""
    sweep = f"{{trials: {trials}, max_concurrent: {CONCURRENT}, outputs: {folder}, memory_per_trial: null}}"
    (folder / "sweep.yaml").write_text(f"{SPACE}train: {{epochs: {EPOCHS}}}\nsweep: {sweep}\n")


def _drive(folder: Path, services: SweepServices) -> None:
    disk.BYTES_PER_TRIAL = 0  # these trials write no weights
    if (folder / NAME).exists():
        resume_sweep(folder / NAME, services=services)
    else:
        run_sweep(load_sweep_config(folder / "sweep.yaml"), name=NAME, services=services)


def _prepare(runs: Any) -> list[_Prepared]:
    return [_Prepared() for _ in runs]


def drive_without_ray(folder: Path, begun: Callable[[], None]) -> None:
    """Begin or resume the sweep in this process, with everything of ``tune.sweep.driver`` but Ray and its loop.

    Args:
        begun: called before the first trial is asked for.
    """

    def loop(*arguments: Any) -> None:
        _loop(*arguments, begun=begun)

    setattr(sweep_trials, "_run_ray", loop)  # noqa: B010 (for mypy)
    _drive(folder, SweepServices(machines=_NoRay(), prepare=_prepare, start_run=KilledRun))


def drive_with_ray(folder: Path) -> None:
    """Begin or resume the sweep with all of its driver."""
    _drive(folder, SweepServices(prepare=_prepare, start_run=KilledRun))


if __name__ == "__main__":
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
    drive_with_ray(Path(sys.argv[1]))
