"""One sweep from its settings to its report, and its resumption: what is checked first, written when, stopped how."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import ray.tune as ray_tune
from rich.console import Console

from nuanced_core.errors import ConfigError, DiskError
from tune.cluster.disk import check_disk, disk_of_trials
from tune.cluster.machines import Machines, ThisMachine, check_fit, concurrent_trials
from tune.cluster.node_preparation import Prepare, PreparedMachines, prepare_machines
from tune.cluster.shared_storage import EndedTrialCopier, SharedFolder
from tune.config.sweep_config import SETTINGS_FILE, SweepConfig, load_sweep
from tune.config.sweep_settings import SweepSettings
from tune.search.enqueue import enqueue
from tune.search.journal import repair_journal
from tune.search.ledger import TrialLedger
from tune.search.results import complete_trials, ended_trials
from tune.search.study import check_new_study, open_study
from tune.show.progress import Progress
from tune.show.report import final_lines
from tune.show.status import mark, status
from tune.sweep.lock import DriverLock
from tune.sweep.record import create_folder, new_folder, provenance, recorded_models, rewrite
from tune.sweep.signals import stop_on_signal
from tune.trial.checkpoints import CheckpointKeeper
from tune.trial.gpu_share import Measure, measure_peak, with_measured_share, with_whole_gpus
from tune.trial.protocol import Start
from tune.trial.ray_search import StudyScheduler, StudySearcher
from tune.trial.trainable import NO_ROOM, STOP_FILE, StyleEncoderTrial

__all__ = ["SweepResult", "SweepServices", "resume_sweep", "run_sweep"]

logger = logging.getLogger(__name__)


# Ray wants a folder for its own state, of which we use nothing.
_RAY_FOLDER = ".ray"


@dataclass(frozen=True)
class SweepServices:
    """What a sweep does its work through, whatever its settings are.

    ``prepare`` gets the runs whose models and data the trials need, before anything is written. ``start`` begins a
    trial's run in its process. ``measure`` says what one takes of a GPU. ``say`` gets a line for each event, unless
    there is a ``console`` that is a terminal: then there is a live table.
    """

    start: Start
    prepare: Prepare

    console: Console | None = None
    machines: Machines = field(default_factory=ThisMachine)
    measure: Measure = measure_peak


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


def run_sweep(config: SweepConfig, *, name: str, services: SweepServices) -> SweepResult:
    """Run a sweep in the folder ``name`` of its outputs and say how it went.

    Raises:
        ConfigError: the folder exists, a trial needs more than there is, or a node is not fit for it.
        DiskError: the disk is full, or the folder cannot be written.
    """
    folder = new_folder(Path(config.sweep.outputs), name)
    check_new_study(folder, config.sweep)
    with services.machines.joined():
        sweep = _sweep_folder(folder, config.sweep)
        if config.sweep.shared is not None and sweep.exists():
            raise ConfigError(f"sweep.shared: {sweep.place}: exists already; give another --name, or remove it")
        check_disk(folder, disk_of_trials(config.sweep))
        config, ready = _ready(folder, config, services)
        create_folder(folder, SETTINGS_FILE, {**config.as_dict(), "record": provenance(ready.models)})
        with closing(DriverLock(folder)) as lock:
            return _drive(_Work(folder, config, services, lock, ready.prepare_late_node))


def resume_sweep(folder: Path, *, overrides: Sequence[str], services: SweepServices) -> SweepResult:
    """Let a sweep go on that was stopped, whatever stopped it, or give one that is finished a larger budget.

    What was told of finished trials stays; those in flight go on from their last checkpoints. ``overrides`` change
    the sweep's settings: its budget, or what is searched, where the trials so far allow it.

    Raises:
        ConfigError: the folder holds no sweep, another driver is at work on it, the overrides contradict the trials so
            far, the model files are not those that it began with, a node is not fit for it, or its budget is met.
        DiskError: the disk is full, or the folder cannot be written.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        raise ConfigError(f"{folder}: not the folder of a sweep (it holds no {SETTINGS_FILE})")
    # The lock comes first: what is refused is refused before anything is rendered.
    with closing(DriverLock(folder)) as lock, services.machines.joined():
        before = load_sweep(file)
        config = load_sweep(file, overrides)
        config.check_extends(before)
        config, ready = _ready(folder, config, services)
        recorded = recorded_models(file)
        changed = sorted(name for name, digest in recorded.items() if ready.models.get(name, digest) != digest)
        if changed:
            raise ConfigError(
                f"{folder}: {', '.join(changed[:3])}: not the file that the sweep began with; fetch that one again "
                "(models.source), or begin a new sweep"
            )
        return _drive(_Work(folder, config, services, lock, ready.prepare_late_node), rewritten=config != before)


def _ready(folder: Path, config: SweepConfig, services: SweepServices) -> tuple[SweepConfig, PreparedMachines]:
    """All machines prepared, and the settings with what was measured there."""
    machines = services.machines.resources()
    config, measured = with_whole_gpus(config, machines)
    check_fit(config.sweep, machines)
    ready = prepare_machines(machines, config, services.prepare, _sweep_folder(folder, config.sweep).parent)
    if measured:
        with services.machines.started():
            config = with_measured_share(config, machines, services.start, services.measure)
    return config, ready


def _sweep_folder(folder: Path, settings: SweepSettings) -> SharedFolder:
    """Where trials find the file that stops them and, in shared storage, leave their own files."""
    if settings.shared is None:
        return SharedFolder(str(folder), "sweep.outputs")
    return SharedFolder(settings.shared).child(folder.name)


@dataclass(frozen=True)
class _Work:
    """A sweep that is ready to begin, or to go on."""

    folder: Path
    config: SweepConfig
    services: SweepServices
    lock: DriverLock
    prepare_late_node: Callable[[], None]  # prepares a node that joins later


def _drive(work: _Work, rewritten: bool = False) -> SweepResult:
    folder, config, services = work.folder, work.config, work.services
    settings = config.sweep
    repair_journal(folder)
    sweep = _sweep_folder(folder, settings)
    sweep.remove(STOP_FILE)
    with _disk_errors(folder):
        study = open_study(folder, settings, create=True, epochs=config.run.train.epochs)
        enqueue(study, config)
    if settings.shared is not None:
        with closing(EndedTrialCopier(sweep, folder)) as copies:  # a driver that was killed had not copied them
            copies.fetch_missing(ended_trials(study))
    ledger = TrialLedger(study, config.search, config.run, folder.absolute() / "trials", settings)
    if not ledger.unmet and not ledger.reopened:
        raise ConfigError(
            f"{folder}: its budget is met ({_budget(settings)}); ask for more with --trials N or --hours H"
        )
    if rewritten:  # not before all that may be wrong with the new settings was told
        rewrite(folder / SETTINGS_FILE, config.as_dict())
    again = f", {ledger.reopened} of them go on" if ledger.reopened else ""
    machines = services.machines.resources()
    nodes = f" on {len(machines)} nodes" if len(machines) > 1 else ""
    logger.info(
        "sweep %s: %s%s, %s at a time%s", folder, _budget(settings), again, concurrent_trials(settings, machines), nodes
    )
    with services.machines.started():
        interrupted = _search(work, study, ledger, sweep)
    if ledger.fatal is not None:
        raise ledger.fatal.__class__(f"{ledger.fatal}; then: {_resume_command(folder, services)}")
    for line in final_lines(folder):
        logger.info("%s", line)
    if interrupted:
        logger.warning("%s; go on with: %s", ledger.closed or "stopped", _resume_command(folder, services))
    return SweepResult(folder, status(folder), interrupted)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A study that cannot be written, before there is a ledger to note that, is told in a line."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{folder}: the study cannot be written: {error.strerror}; free some disk") from None


def _resume_command(folder: Path, services: SweepServices) -> str:
    return f"nuanced sweep --resume {folder}{services.machines.options}"


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


def _search(work: _Work, study: optuna.Study, ledger: TrialLedger, sweep: SharedFolder) -> bool:
    """Run the trials; returns whether they were stopped before the budget was met."""
    folder, services, settings = work.folder, work.services, work.config.sweep
    with _disk_errors(folder):
        mark(study, "running")
    with closing(_EndedTrials(work, study, ledger, sweep)) as ended:

        def on_turn() -> None:
            work.lock.beat()
            ledger.tick()
            ended.turn()

        progress = Progress(ledger, settings.trials, services.console, on_turn=on_turn)
        stop = _StopRequest(sweep, ledger)
        try:
            with stop_on_signal(stop.ask):
                _tune(work, ledger, progress, stop)
        except KeyboardInterrupt:
            ledger.close("stopped at once")
        except OSError as error:  # Ray cannot write its own state
            if error.errno not in NO_ROOM:
                raise
            ledger.stop(DiskError(f"{folder}: cannot be written: {error.strerror}"))
        finally:
            # Whatever happened: what ended the study knows, and what did not is in flight.
            unmet = ledger.interrupt_all() > 0 or (ledger.closed is not None and ledger.unmet)
            progress.close()
            ledger.note_time()
            with suppress(OSError, optuna.exceptions.StorageInternalError):
                mark(study, "interrupted" if unmet else "finished")
            ledger.sync()
            sweep.remove(STOP_FILE)
            shutil.rmtree(folder / _RAY_FOLDER, ignore_errors=True)
    return unmet


class _EndedTrials:
    """What is done with the folder of each trial that has ended: checkpoints removed, the rest copied here."""

    def __init__(self, work: _Work, study: optuna.Study, ledger: TrialLedger, sweep: SharedFolder) -> None:
        self._ledger, self._seen = ledger, 0
        self._copies, places = None, [sweep]
        settings = work.config.sweep
        if settings.shared is not None:
            self._copies = EndedTrialCopier(sweep, work.folder)
            places.append(SharedFolder(str(work.folder), "sweep.outputs"))
        self._keeper = CheckpointKeeper(settings, places, complete_trials(study))

    def turn(self) -> None:
        """Look at the trials that have ended since the last turn."""
        while self._seen < len(self._ledger.ended):
            number, ending = self._ledger.ended[self._seen]
            self._seen += 1
            self._keeper.note(number, ending)
            if self._copies is not None and ending.state != "interrupted":
                self._copies.fetch(number)

    def close(self) -> None:
        """Of the last ones too, to the end."""
        self.turn()
        if self._copies is not None:
            self._copies.close()


@dataclass
class _StopRequest:
    """Asks the trials to write a checkpoint and stop; they look for the file."""

    sweep: SharedFolder
    ledger: TrialLedger
    asked: bool = False

    def ask(self) -> None:
        self.asked = True
        self.ledger.close("stopped")
        with suppress(DiskError):
            self.sweep.write(STOP_FILE, "")


class _StopWhenAsked(ray_tune.Stopper):  # type: ignore[misc]
    """Nothing is cut short: with the ledger closed, Ray's loop ends when the trials have stopped."""

    def __init__(self, request: _StopRequest) -> None:
        self._request = request

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._request.ledger.closed is not None and not self._request.asked:
            self._request.ask()  # the disk is full, or all trials fail: those under way stop too
        return False


def _tune(work: _Work, ledger: TrialLedger, progress: Progress, stop: _StopRequest) -> None:
    config, settings, machines = work.config, work.config.sweep, work.services.machines
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(
            StyleEncoderTrial,
            start=work.services.start,
            run=config.run,
            search=config.search,
            threads=max(1, int(settings.cpus_per_trial)),
            sweep=stop.sweep,
            is_shared=settings.shared is not None,
            ready=work.prepare_late_node,
        ),
        # A trial that ran out of GPU memory gets more than the others.
        lambda trial: ray_tune.PlacementGroupFactory([{"CPU": settings.cpus_per_trial, "GPU": trial["gpus"]}]),
    )
    ray_tune.Tuner(
        trainable,
        tune_config=ray_tune.TuneConfig(
            search_alg=StudySearcher(ledger, lambda: concurrent_trials(settings, machines.resources())),
            scheduler=StudyScheduler(ledger, stop.sweep),
            num_samples=-1,  # the ledger knows when it is enough
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=ray_tune.RunConfig(
            name=_RAY_FOLDER,
            storage_path=str(work.folder.absolute()),
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
