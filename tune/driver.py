"""One sweep from its settings to its report: what is checked first, written when, and stopped how."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray.tune as ray_tune
from rich.console import Console

from tune.cluster import check_fit, local_cluster, local_resources
from tune.config import SweepConfig, SweepSettings
from tune.outputs import BYTES_PER_TRIAL, Prepare, check_disk, create_folder, new_folder, origin
from tune.progress import Progress
from tune.report import final_lines, mark, status
from tune.scheduling import StudyScheduler, StudySearcher
from tune.study import TrialLedger, open_study
from tune.trainable import Start, StyleEncoderTrial

__all__ = ["SweepResult", "run_sweep"]

Say = Callable[[str], None]

# Ray wants a folder for its own state, of which we use nothing.
_RAY_FOLDER = ".ray"


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended: its folder, its ``status``, and whether it was stopped before its budget was met."""

    folder: Path
    status: dict[str, Any]
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """Of the command that ran it: 0, 130 when it was interrupted, 1 when no trial is complete."""
        if self.interrupted:
            return 130
        return 0 if self.status["best"] else 1


def run_sweep(
    config: SweepConfig,
    *,
    name: str,
    start: Start,
    prepare: Prepare,
    say: Say,
    console: Console | None = None,
) -> SweepResult:
    """Run a sweep in the folder ``name`` of its outputs and say how it went.

    ``prepare`` gets the runs whose models and data the trials need, before anything is written.
    ``start`` begins a trial's run in its process. With a ``console`` that is a terminal there is a live
    table; else ``say`` gets a line for each event.

    Raises:
        ConfigError: the folder exists, or a trial needs more than the machine has.
        DiskError: the disk is full, or the folder cannot be written.
    """
    settings = config.sweep
    folder = new_folder(Path(settings.outputs), name)
    resources = local_resources()
    check_fit(settings, resources)
    check_disk(folder, settings.trials * BYTES_PER_TRIAL)
    record = origin(prepare(config.runs_to_prepare(), say))
    concurrent = resources.fitting(settings)
    say(f"sweep {folder}: {settings.trials} trials, {concurrent} at a time")
    with local_cluster(resources):
        create_folder(folder, "sweep.yaml", {**config.as_dict(), "record": record})
        interrupted = _search(folder, config, concurrent, start, say, console)
    for line in final_lines(folder):
        say(line)
    return SweepResult(folder, status(folder), interrupted)


def _search(
    folder: Path, config: SweepConfig, concurrent: int, start: Start, say: Say, console: Console | None
) -> bool:
    """Run the trials; returns whether they were stopped before the budget was met."""
    settings = config.sweep
    study = open_study(folder, settings, create=True)
    mark(study, "running")
    ledger = TrialLedger(study, config.search, config.run, folder.absolute() / "trials", settings.trials)
    progress = Progress(ledger, settings.trials, say, console)
    stop = _StopRequest()
    unmet = True
    try:
        with _stopped_by_signals(stop):
            _tune(folder, settings, concurrent, ledger, progress, start, stop)
    except KeyboardInterrupt:
        stop.asked = True
    finally:
        # Whatever happened: the study says of every trial how it ended.
        unmet = ledger.end_all("interrupted") > 0 or ledger.left > 0
        progress.close()
        mark(study, "interrupted" if unmet else "finished")
        shutil.rmtree(folder / _RAY_FOLDER, ignore_errors=True)
    return unmet


@dataclass
class _StopRequest:
    asked: bool = False


class _StopWhenAsked(ray_tune.Stopper):  # type: ignore[misc]
    """Lets Ray stop all trials in its own loop, so that no process is left behind."""

    def __init__(self, request: _StopRequest) -> None:
        self._request = request

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._request.asked


@contextmanager
def _stopped_by_signals(request: _StopRequest) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the sweep to stop, the second stops it at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tune(
    folder: Path,
    settings: SweepSettings,
    concurrent: int,
    ledger: TrialLedger,
    progress: Progress,
    start: Start,
    stop: _StopRequest,
) -> None:
    threads = max(1, int(settings.cpus_per_trial))
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(StyleEncoderTrial, start=start, threads=threads),
        {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial},
    )
    ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=StudySearcher(ledger),
            scheduler=StudyScheduler(ledger),
            num_samples=settings.trials,
            # Never more than fit: a trial that waits would have been chosen knowing less.
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=ray_tune.RunConfig(
            name=_RAY_FOLDER,
            storage_path=str(folder.absolute()),
            stop=_StopWhenAsked(stop),
            callbacks=[progress],
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=0),
            # Runs write their own; Ray's default for a class is one at the end.
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()


def _trial_name(trial: Any) -> str:
    return str(trial.config["number"])
