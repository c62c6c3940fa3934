"""One sweep from its settings to its report, and its resumption: what is checked first, written when, stopped how."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune as ray_tune
from rich.console import Console

from nuanced_core.errors import ConfigError
from tune.cluster import check_fit, local_cluster, local_resources
from tune.config import SETTINGS_FILE, SweepConfig, SweepSettings, load_sweep
from tune.enqueue import enqueue
from tune.ledger import TrialLedger
from tune.lock import DriverLock
from tune.outputs import (
    Prepare,
    check_disk,
    create_folder,
    disk_of_trials,
    new_folder,
    origin,
    recorded_models,
    rewrite,
)
from tune.progress import Progress
from tune.report import final_lines, mark, status
from tune.scheduling import StudyScheduler, StudySearcher
from tune.signals import first_signal_asks
from tune.study import mend_study, open_study
from tune.trainable import Start, StyleEncoderTrial

__all__ = ["SweepResult", "resume_sweep", "run_sweep"]

Say = Callable[[str], None]

STOP_FILE = "stop"  # while it is there, trials write a checkpoint and stop
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
        return 0 if self.status["best"] or self.status["pareto"] else 1


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
    check_fit(settings, local_resources())
    check_disk(folder, disk_of_trials(settings))
    record = origin(prepare(config.runs_to_prepare(), say))
    create_folder(folder, SETTINGS_FILE, {**config.as_dict(), "record": record})
    with closing(DriverLock(folder, say)) as lock:
        return _drive(folder, config, start, say, console, lock)


def resume_sweep(
    folder: Path,
    *,
    overrides: list[str],
    start: Start,
    prepare: Prepare,
    say: Say,
    console: Console | None = None,
) -> SweepResult:
    """Let a sweep go on that was stopped, whatever stopped it, or give one that is finished a larger budget.

    What was told of finished trials stays; those in flight go on from their last checkpoints. ``overrides`` change
    the sweep's settings: its budget, say, or what is searched, where the trials so far allow it.

    Raises:
        ConfigError: the folder holds no sweep, another driver is at work on it, the overrides contradict the trials so
            far, the model files are not those that it began with, or its budget is met.
        DiskError: the disk is full, or the folder cannot be written.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        raise ConfigError(f"{folder}: not the folder of a sweep (it holds no {SETTINGS_FILE})")
    with closing(DriverLock(folder, say)) as lock:  # first: what is refused is refused before anything is rendered
        before = load_sweep(file)
        config = load_sweep(file, overrides)
        config.check_extends(before)
        check_fit(config.sweep, local_resources())
        record = origin(prepare(config.runs_to_prepare(), say))
        changed = sorted(
            name for name, digest in recorded_models(file).items() if record["models"].get(name, digest) != digest
        )
        if changed:
            raise ConfigError(
                f"{folder}: {', '.join(changed[:3])}: not the file that the sweep began with; fetch that one again "
                "(models.source), or begin a new sweep"
            )
        return _drive(folder, config, start, say, console, lock, rewritten=config != before)


def _drive(
    folder: Path,
    config: SweepConfig,
    start: Start,
    say: Say,
    console: Console | None,
    lock: DriverLock,
    rewritten: bool = False,
) -> SweepResult:
    settings = config.sweep
    mend_study(folder)
    (folder / STOP_FILE).unlink(missing_ok=True)
    resources = local_resources()
    study = open_study(folder, settings, create=True, epochs=config.run.train.epochs)
    enqueue(study, config, say)
    ledger = TrialLedger(study, config.search, config.run, folder.absolute() / "trials", settings)
    concurrent = resources.fitting(settings)
    if not ledger.unmet and not ledger.reopened:
        raise ConfigError(
            f"{folder}: its budget is met ({_budget(settings)}); ask for more with --trials N or --hours H"
        )
    if rewritten:  # not before all that may be wrong with the new settings was told
        rewrite(folder / SETTINGS_FILE, config.as_dict())
    again = f", {ledger.reopened} of them go on" if ledger.reopened else ""
    say(f"sweep {folder}: {_budget(settings)}{again}, {concurrent} at a time")
    with local_cluster(resources):
        interrupted = _search(folder, settings, concurrent, study, ledger, start, say, console, lock)
    if ledger.fatal is not None:
        raise ledger.fatal.__class__(f"{ledger.fatal}; then: {_resume_command(folder)}")
    for line in final_lines(folder):
        say(line)
    if interrupted:
        say(f"{ledger.closed or 'stopped'}; go on with: {_resume_command(folder)}")
    return SweepResult(folder, status(folder), interrupted)


def _resume_command(folder: Path) -> str:
    return f"nuanced sweep --resume {folder}"


def _budget(settings: SweepSettings) -> str:
    parts = [
        f"{value:g} {name}"
        for value, name in (
            (settings.trials, "trials"),
            (settings.hours, "hours"),
            (settings.gpu_hours, "GPU hours"),
        )
        if value is not None
    ]
    return ", ".join(parts)


def _search(
    folder: Path,
    settings: SweepSettings,
    concurrent: int,
    study: Any,
    ledger: TrialLedger,
    start: Start,
    say: Say,
    console: Console | None,
    lock: DriverLock,
) -> bool:
    """Run the trials; returns whether they were stopped before the budget was met."""
    mark(study, "running")

    def on_turn() -> None:
        lock.beat()
        ledger.tick()

    progress = Progress(ledger, settings.trials, say, console, on_turn=on_turn)
    stop = _StopRequest(folder / STOP_FILE, ledger)
    try:
        with first_signal_asks(stop.ask):
            _tune(folder, settings, concurrent, ledger, progress, start, stop)
    except KeyboardInterrupt:
        ledger.close("stopped at once")
    finally:
        # Whatever happened: what ended the study knows, and what did not is in flight.
        unmet = ledger.interrupt_all() > 0 or (ledger.closed is not None and ledger.unmet)
        progress.close()
        ledger.note_time()
        with suppress(OSError):
            mark(study, "interrupted" if unmet else "finished")
        stop.file.unlink(missing_ok=True)
        shutil.rmtree(folder / _RAY_FOLDER, ignore_errors=True)
    return unmet


@dataclass
class _StopRequest:
    """Asks the trials to write a checkpoint and stop; they look for the file."""

    file: Path
    ledger: TrialLedger

    def ask(self) -> None:
        self.ledger.close("stopped")
        with suppress(OSError):
            self.file.touch()


class _StopWhenAsked(ray_tune.Stopper):  # type: ignore[misc]
    """Nothing is cut short: with the ledger closed, Ray's loop ends when the trials have stopped."""

    def __init__(self, request: _StopRequest) -> None:
        self._request = request

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        ledger = self._request.ledger
        if ledger.closed is not None and not self._request.file.exists():
            self._request.ask()  # the disk is full, or all trials fail: those under way stop too
        return False


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
        ray_tune.with_parameters(StyleEncoderTrial, start=start, threads=threads, stop_file=stop.file.absolute()),
        # A trial that ran out of GPU memory gets more than the others.
        lambda config: ray_tune.PlacementGroupFactory([{"CPU": settings.cpus_per_trial, "GPU": config["gpus"]}]),
    )
    ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=StudySearcher(ledger),
            scheduler=StudyScheduler(ledger),
            num_samples=-1,  # the ledger knows when it is enough
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
            failure_config=ray_tune.FailureConfig(max_failures=settings.max_failures),
            # Runs write their own; Ray's default for a class is one at the end.
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()


def _trial_name(trial: Any) -> str:
    return str(trial.config["number"])
