"""The stage of a sweep that runs its trials: Ray's event loop, and what happens around it until the budget is met."""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
import ray.tune as ray_tune

from nuanced_core.errors import DiskError
from tune.cluster.machines import concurrent_trials
from tune.cluster.shared_storage import EndedTrialCopier, SharedFolder
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_settings import SweepSettings
from tune.loggers.run_loggers import LoggerPlan
from tune.loggers.sweep_loggers import SweepLoggers
from tune.search.ledger import TrialLedger
from tune.search.results import complete_trials, ended_trials
from tune.show.progress import Progress
from tune.show.status import mark
from tune.sweep.place import SweepPlace
from tune.sweep.services import SweepServices
from tune.sweep.signals import stop_on_signal
from tune.trial.checkpoints import CheckpointKeeper
from tune.trial.ray_search import StudyScheduler, StudySearcher
from tune.trial.trainable import DISK_FULL, STOP_FILE, StyleEncoderTrial

__all__ = ["OpenSweep", "run_trials"]

logger = logging.getLogger(__name__)

_RAY_FOLDER = ".ray"  # Ray requires a folder for its own state, which is removed at the end


@dataclass(frozen=True)
class OpenSweep:
    """A sweep that is ready to run trials: its folder and study exist, its machines are prepared.

    Attributes:
        config: the settings, with what was measured on the machines.
        prepare_late_node: called by a trial in its process, to prepare a node that joined after the others.
    """

    place: SweepPlace
    config: SweepConfig
    study: optuna.Study
    ledger: TrialLedger
    prepare_late_node: Callable[[], None]


def run_trials(sweep: OpenSweep, services: SweepServices) -> bool:
    """Run trials until the budget is met or the sweep is stopped; return whether it was stopped before.

    Whatever happens, the study knows of every trial that ended, and holds every other one as in flight.
    """
    place, ledger = sweep.place, sweep.ledger
    with (
        services.machines.started(),
        closing(_loggers(sweep)) as loggers,
        closing(_EndedTrials(sweep, loggers)) as ended,
    ):
        with place.disk_errors():
            mark(sweep.study, "running")

        def on_turn() -> None:
            ledger.tick()
            ended.process()
            loggers.tick()

        earlier = len(ended_trials(sweep.study)), next(iter(complete_trials(sweep.study)), None)
        progress = Progress(ledger, sweep.config.sweep.trials, services.console, on_turn, earlier)
        stop = _StopRequest(place.storage, ledger)
        try:
            with stop_on_signal(stop.ask):
                _run_ray(sweep, services, loggers.plan, progress, stop)
        except KeyboardInterrupt:
            ledger.close("stopped at once")
        except OSError as error:  # Ray cannot write its own state
            if error.errno not in DISK_FULL:
                raise
            ledger.stop(DiskError(f"{place.folder}: cannot be written: {error.strerror}"))
        finally:
            unmet = ledger.interrupt_all() > 0 or (ledger.closed is not None and ledger.has_budget)
            progress.close()
            ledger.save_used_time()
            with suppress(OSError, optuna.exceptions.StorageInternalError):
                mark(sweep.study, "interrupted" if unmet else "finished")
            ledger.sync()
            place.storage.remove(STOP_FILE)
            shutil.rmtree(place.folder / _RAY_FOLDER, ignore_errors=True)
    return unmet


class _EndedTrials:
    """Handles each trial that has ended: removes checkpoints, copies the rest from shared storage, shows its state."""

    def __init__(self, sweep: OpenSweep, loggers: SweepLoggers) -> None:
        place = sweep.place
        self._loggers = loggers
        self._ledger, self._processed = sweep.ledger, 0
        self._copier = EndedTrialCopier(place.storage, place.folder, loggers.before_copy) if place.is_shared else None
        folders = [place.storage]
        if place.is_shared:
            folders.append(SharedFolder(str(place.folder), "sweep.outputs"))
        self._keeper = CheckpointKeeper(sweep.config.sweep, folders, complete_trials(sweep.study))

    def process(self) -> None:
        """Handle the trials that have ended since the last call."""
        while self._processed < len(self._ledger.ended):
            number, ending = self._ledger.ended[self._processed]
            self._processed += 1
            self._keeper.note(number, ending)
            show = partial(self._loggers.ended, number, ending.state)
            if self._copier is not None and ending.state != "interrupted":
                self._copier.fetch(number, show)  # the copy replaces the folder that it is shown in
            else:
                show()

    def close(self) -> None:
        """Handle the last ones, and wait for the copies."""
        self.process()
        if self._copier is not None:
            self._copier.close()


def _loggers(sweep: OpenSweep) -> SweepLoggers:
    """Return what shows the sweep's trials, and from now on follows the ledger."""
    place = sweep.place
    with place.disk_errors():
        loggers = SweepLoggers(sweep.config, sweep.study, place.folder, place.storage if place.is_shared else None)
    sweep.ledger.watcher = loggers
    return loggers


@dataclass
class _StopRequest:
    """Asks the trials, which look for the stop file, to write a checkpoint and stop."""

    storage: SharedFolder
    ledger: TrialLedger
    asked: bool = False
    logged: bool = False

    def ask(self) -> None:
        self.asked = True
        self.ledger.close("stopped")
        with suppress(DiskError):
            self.storage.write(STOP_FILE, "")


class _StopWhenClosed(ray_tune.Stopper):  # type: ignore[misc]
    """Passes on to the trials that the ledger was closed; Ray's loop ends by itself when they have stopped."""

    def __init__(self, request: _StopRequest) -> None:
        self._request = request

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._request.asked and not self._request.logged:  # not by the signal's handler, which may interrupt a log
            self._request.logged = True
            logger.info("stopping: the trials write their checkpoints (Ctrl-C stops at once)")
        if self._request.ledger.closed is not None and not self._request.asked:
            self._request.ask()  # the disk is full, or all trials fail: running trials stop too
        return False


def _run_ray(
    sweep: OpenSweep, services: SweepServices, plan: LoggerPlan, progress: Progress, stop: _StopRequest
) -> None:
    place, config, ledger = sweep.place, sweep.config, sweep.ledger
    settings, machines = config.sweep, services.machines
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(
            StyleEncoderTrial,
            start_run=services.start_run,
            run=config.run,
            search=config.search,
            threads=max(1, int(settings.cpus_per_trial)),
            storage=place.storage.in_memory(),
            loggers=plan,
            is_shared=place.is_shared,
            prepare_late_node=sweep.prepare_late_node,
        ),
        lambda trial: ray_tune.PlacementGroupFactory([_trial_resources(settings, trial)]),
    )
    ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=StudySearcher(ledger, lambda: concurrent_trials(settings, machines.resources())),
            scheduler=StudyScheduler(ledger, place.storage),
            num_samples=-1,  # the ledger enforces the budget
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=ray_tune.RunConfig(
            name=_RAY_FOLDER,
            storage_path=str(place.folder.absolute()),
            stop=_StopWhenClosed(stop),
            callbacks=[progress],
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=settings.max_failures),
            # Runs write their own checkpoints; Ray's default for a class is one at the end.
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()


def _trial_resources(settings: SweepSettings, trial: Mapping[str, Any]) -> dict[str, float]:
    """Return what Ray reserves for a trial; one that ran out of GPU memory gets a larger share than the others."""
    resources = {"CPU": settings.cpus_per_trial, "GPU": trial["gpus"]}
    return {**resources, "memory": settings.memory} if settings.memory else resources


def _trial_name(trial: Any) -> str:
    return str(trial.config["number"])
