"""What the driver does for the loggers of a sweep: what no trial's process knows, or can write."""

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from tune.cluster.shared_storage import SharedFolder
from tune.config.dimension import Choices
from tune.config.space import SEED
from tune.config.sweep_config import SweepConfig
from tune.loggers.clients.background import RunState
from tune.loggers.hparams import PEOPLE_SCORES, HparamsTable
from tune.loggers.layout import write_layout
from tune.loggers.live_events import LiveEvents
from tune.loggers.run_loggers import LoggerPlan
from tune.search.results import TrialWatcher

__all__ = ["SweepLoggers"]

logger = logging.getLogger(__name__)

_KEY = "loggers"  # user attribute of the study: what distinguishes its runs from those of another study of its name


class SweepLoggers(TrialWatcher):
    """Shows the trials of a sweep in the loggers of ``sweep.loggers``, as far as the driver has to.

    In TensorBoard that is the HPARAMS tab, the page of custom scalars, and the curves of trials on other nodes; in
    MLflow the state of each run.

    Args:
        config: of the sweep.
        study: of the sweep, whose earlier trials are shown too.
        folder: of the sweep.
        shared: ``folder`` in shared storage, if it is set.

    Attributes:
        plan: what the trials log to.
    """

    def __init__(
        self, config: SweepConfig, study: optuna.Study, folder: Path, shared: SharedFolder | None = None
    ) -> None:
        names = config.sweep.loggers
        others = {"mlflow", "wandb"} & set(names)
        name = config.sweep.study_name or folder.name
        uri = None
        if "mlflow" in others and shared is None:
            from tune.loggers.clients.mlflow_runs import create_store

            uri = create_store(folder, name)
        self.plan = LoggerPlan(names, name, folder.name, _key(study) if others else "", uri)
        self._hparams: HparamsTable | None = None
        self._live: LiveEvents | None = None
        self._states: Any = None
        self._warned: set[str] = set()
        if "tensorboard" in names:
            trials, copy = folder.absolute() / "trials", None if shared is None else shared.child("trials")
            write_layout(trials, copy)
            self._hparams = _hparams_table(config, trials, copy)
            self._hparams.open(study)
            if shared is not None:
                self._live = LiveEvents(shared, folder)
        if "mlflow" in others:
            from tune.loggers.clients.mlflow_runs import MlflowStates

            self._states = MlflowStates(uri, name)

    def __getstate__(self) -> dict[str, Any]:
        # Ray's Tuner pickles its searcher, and with it the ledger and its watcher, for Tuner.restore, never used here.
        return {}

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Show a trial as running."""
        if self._hparams is not None:
            self._hparams.started(number, params)

    def improved(self, number: int, epoch: int, scores: Mapping[str, float]) -> None:
        """Show the scores of a trial's best epoch so far."""
        if self._hparams is not None:
            self._hparams.improved(number, epoch, scores)

    def reported(self, number: int) -> None:
        """Show the new events of a trial."""
        if self._live is not None:
            self._live.reported(number)

    def warned(self, line: str) -> None:
        """Log a trial's line about a logger that failed, once for each logger."""
        name = line.partition(":")[0]
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("%s", line)

    def tick(self) -> None:
        """Begin what is due; to be called at each turn of the driver's loop."""
        if self._live is not None:
            self._live.tick()

    def before_copy(self, number: int) -> None:
        """Take note, in any thread, that a trial's folder is about to be replaced by the copy from shared storage."""
        if self._live is not None:
            self._live.end(number)

    def ended(self, number: int, state: RunState) -> None:
        """Show how a trial ended; with shared storage, only once the trial's folder was copied."""
        if self._hparams is not None:
            self._hparams.ended(number, state)
        if self._states is not None:
            self._states.ended(self.plan.run_id(number), state)

    def close(self) -> None:
        """Wait for what is being written."""
        if self._live is not None:
            self._live.close()
        if self._hparams is not None:
            self._hparams.close()
        if self._states is not None:
            self._states.close()


def _key(study: optuna.Study) -> str:
    if _KEY not in study.user_attrs:
        study.set_user_attr(_KEY, secrets.token_hex(4))
    return str(study.user_attrs[_KEY])


def _hparams_table(config: SweepConfig, trials: Path, copy: SharedFolder | None) -> HparamsTable:
    """Return TensorBoard's table of the sweep's trials."""
    seeds = tuple(config.run.train.seed + n for n in range(config.sweep.repeats))
    return HparamsTable(
        trials,
        config.search,
        scores=(*config.sweep.objectives, *(PEOPLE_SCORES if config.run.data.people else ())),
        others={SEED: Choices(seeds)} if len(seeds) > 1 else {},
        copy=copy,
    )
