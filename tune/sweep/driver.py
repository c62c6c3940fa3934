"""One sweep, stage by stage: load and check, prepare the machines, open the study, run the trials, conclude.

Each stage takes what the one before returned. A resumed sweep differs from a new one in the source of its
settings, and in its place, which exists already.
"""

import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuanced_core.errors import ConfigError, StoppedError
from tune.cluster.machines import check_fit, concurrency_limit, concurrent_trials
from tune.cluster.node_preparation import prepare_machines
from tune.cluster.shared_storage import EndedTrialCopier
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_settings import SweepSettings
from tune.loggers.run_loggers import check_loggers
from tune.search.enqueue import check_enqueued, enqueue, enqueue_failed
from tune.search.ledger import TrialLedger
from tune.search.results import ended_trials
from tune.show.report import final_lines
from tune.show.status import study_status
from tune.sweep.place import SweepPlace
from tune.sweep.services import SweepServices
from tune.sweep.signals import interrupt_on_signal
from tune.sweep.trials import OpenSweep, run_trials
from tune.trial.resources import with_estimated_memory, with_measured_share, with_whole_gpus
from tune.trial.trainable import STOP_FILE

__all__ = ["SweepResult", "SweepServices", "resume_sweep", "run_sweep"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
        folder: of the sweep.
        status: as ``tune.show.status.study_status`` returns it.
        lines: the final report, for people.
        interrupted: whether the sweep was stopped before its budget was met.
    """

    folder: Path
    status: dict[str, Any]
    lines: list[str]
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """Exit code of the command that ran the sweep: 0, 130 if it was interrupted, 1 if no trial is complete."""
        if self.interrupted:
            return 130
        return 0 if self.status["best"] or self.status["pareto"] else 1


@dataclass(frozen=True)
class _PreparedSweep:
    """A sweep whose machines are ready: its settings with what was measured there."""

    config: SweepConfig
    saved: SweepConfig  # of sweep.yaml, where memory_per_trial stays auto: a resumed sweep may have larger trials
    models: dict[str, str]  # SHA-256 by model file
    prepare_late_node: Callable[[], None]  # called by a trial on a node that joined after the preparation


def run_sweep(config: SweepConfig, *, name: str, services: SweepServices | None = None) -> SweepResult:
    """Run a sweep in the new folder ``name`` of ``sweep.outputs``.

    Raises:
        ConfigError: the folder exists, a trial needs more than the machines have, or a node cannot run trials.
        DiskError: the disk is full, or the folder cannot be written.
    """
    with SweepPlace.new(config.sweep, name) as place:
        return _run_stages(place, config.with_absolute_places(place.folder), services or SweepServices())


def resume_sweep(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    retry_failed: bool = False,
    services: SweepServices | None = None,
) -> SweepResult:
    """Resume a sweep, whatever stopped it, or extend a finished one with a larger budget.

    Results of finished trials are kept; trials in flight continue from their last checkpoints.

    Args:
        overrides: ``section.name=value`` changes of the settings, such as a larger budget, or of the search space as
            far as the trials so far allow it.
        retry_failed: whether to run the settings of failed trials again, in new trials that take their places in the
            budget.

    Raises:
        ConfigError: the folder holds no sweep, another driver is at work on it, the overrides contradict the trials so
            far, the model files are not those that it began with, a node cannot run trials, its budget is met, or its
            search space is used up.
        DiskError: the disk is full, or the folder cannot be written.
    """
    with SweepPlace.existing(folder) as place:
        return _run_stages(place, place.settings_with(overrides), services or SweepServices(), retry_failed)


def _run_stages(
    place: SweepPlace, config: SweepConfig, services: SweepServices, retry_failed: bool = False
) -> SweepResult:
    check_loggers(config.sweep.loggers, is_shared=place.is_shared)
    if place.saved is None:
        check_enqueued(config)
    with interrupt_on_signal(), services.machines.joined():
        prepared = _prepare(place, config, services)
        sweep = _open(place, prepared, retry_failed)
        _log_start(sweep, services)
        interrupted = run_trials(sweep, services)
        return _conclude(sweep, interrupted, services)


def _prepare(place: SweepPlace, config: SweepConfig, services: SweepServices) -> _PreparedSweep:
    """Check and prepare all machines; measure a trial's share of a GPU where the settings ask for that."""
    machines = services.machines.resources()
    config, measured = with_whole_gpus(config, machines)
    memory_setting = config.sweep.memory_per_trial
    config = with_estimated_memory(config, machines)
    check_fit(config.sweep, machines)
    ready = prepare_machines(machines, config, services.prepare, place.storage.parent)
    if measured:
        with services.machines.started():
            config = with_measured_share(config, machines, services.start_run, services.measure)
    saved = config.with_memory_per_trial(memory_setting)
    return _PreparedSweep(config, saved, ready.models, ready.prepare_late_node)


def _open(place: SweepPlace, prepared: _PreparedSweep, retry_failed: bool) -> OpenSweep:
    """Open the sweep's folder, its study and its ledger."""
    config = prepared.config
    place.open(prepared.saved, prepared.models)
    place.storage.remove(STOP_FILE)
    with place.disk_errors():
        study = place.open_study(config)
        enqueue(study, config)
        if retry_failed:
            logger.info("%d failed trials are run again", enqueue_failed(study, config))
    if place.is_shared:
        with closing(EndedTrialCopier(place.storage, place.folder)) as copier:  # a killed driver may not have done it
            copier.fetch_missing(ended_trials(study))
    ledger = TrialLedger(study, config.search, config.run, place.trials_folder, config.sweep)
    if not ledger.has_budget and not ledger.reopened:
        again = "" if retry_failed else ", or run failed trials again with --retry-failed"
        if ledger.used_up:
            raise ConfigError(f"{place.folder}: {_tried(ledger)}; widen it with --set search.NAME=…{again}")
        budget = _budget(config.sweep)
        raise ConfigError(
            f"{place.folder}: its budget is met ({budget}); ask for more with --trials N or --hours H{again}"
        )
    place.save(prepared.saved)  # only now: everything that could be wrong with changed settings has been checked
    return OpenSweep(place, config, study, ledger, prepared.prepare_late_node)


def _conclude(sweep: OpenSweep, interrupted: bool, services: SweepServices) -> SweepResult:
    """Report how the sweep ended.

    Raises:
        DiskError: the study could not be written.
        StoppedError: a new sweep was stopped before its first trial.
    """
    place, ledger = sweep.place, sweep.ledger
    if place.is_unused and ledger.disk_error is not None:  # the place removes what it created
        raise ledger.disk_error
    if place.is_unused and interrupted:
        raise StoppedError(f"{ledger.closed or 'stopped'} before the first trial; nothing is kept")
    resume = f"nuanced sweep --resume {shlex.quote(str(place.folder))}{services.machines.options}"
    if ledger.disk_error is not None:
        raise ledger.disk_error.__class__(f"{ledger.disk_error}; then: {resume}")
    status = study_status(sweep.study)
    lines = final_lines(place.folder, sweep.study, status)
    if ledger.used_up or sweep.config.sweep.sampler == "grid":
        lines.append(_tried(ledger))
    if interrupted:
        lines.append(f"{ledger.closed or 'stopped'}; resume with: {resume}")
    return SweepResult(place.folder, status, lines, interrupted)


def _tried(ledger: TrialLedger) -> str:
    tried, size = ledger.tried
    return f"{'all' if ledger.used_up else f'{tried} of the'} {size} combinations of the search space have been tried"


def _log_start(sweep: OpenSweep, services: SweepServices) -> None:
    settings, ledger, machines = sweep.config.sweep, sweep.ledger, services.machines.resources()
    again = f", {ledger.reopened} of them resumed" if ledger.reopened else ""
    nodes = f" on {len(machines)} nodes" if len(machines) > 1 else ""
    fit = concurrent_trials(settings, machines)
    limit = concurrency_limit(settings, machines)
    logger.info("sweep %s: %s%s, %d at a time%s (%s)", sweep.place.folder, _budget(settings), again, fit, nodes, limit)


def _budget(settings: SweepSettings) -> str:
    limits = ((settings.trials, "trials"), (settings.hours, "hours"), (settings.gpu_hours, "GPU hours"))
    return ", ".join(f"{value:g} {unit}" for value, unit in limits if value is not None) or "the whole grid"
