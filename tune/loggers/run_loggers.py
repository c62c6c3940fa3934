"""The loggers of ``sweep.loggers``: what is checked before a sweep starts, and what a trial reports to."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuanced_core.errors import ConfigError
from nuanced_core.exhibits.exhibit import Exhibit
from tune.loggers.clients.background import BackgroundLogger, Client, RunState
from tune.loggers.tensorboard import TensorBoardReport

__all__ = ["LoggerPlan", "RunState", "TrialLoggers", "check_loggers", "flat_settings"]

logger = logging.getLogger(__name__)

_EXTRAS = {"mlflow": "mlflow.tracking", "wandb": "wandb"}  # the module of each extra


@dataclass(frozen=True)
class LoggerPlan:
    """Where the trials of a sweep are logged.

    Args:
        names: of the loggers, as in ``sweep.loggers``.
        study: name of the study, which names MLflow's experiment and W&B's project.
        sweep: name of the sweep's folder.
        key: of the study, the same in resumed sweeps and another one in a new sweep of the same name.
        mlflow_uri: of a store in the sweep's folder, for trials without ``MLFLOW_TRACKING_URI``; None: there is none.
    """

    names: tuple[str, ...] = ("tensorboard",)
    study: str = ""
    sweep: str = ""
    key: str = ""
    mlflow_uri: str | None = None

    def run_name(self, number: int) -> str:
        """Return the name of a trial's run, for people."""
        return f"{self.sweep}-{number}"

    def run_id(self, number: int) -> str:
        """Return what identifies a trial's run, also after it was resumed in another process."""
        return f"{self.key}-{number}"


class TrialLoggers:
    """Reports a trial to the loggers of a sweep.

    Args:
        plan: of the sweep.
        number: of the trial.
        folder: of the trial.
        settings: of the trial's run, by dotted name.
    """

    def __init__(self, plan: LoggerPlan, number: int, folder: Path, settings: Mapping[str, Any]) -> None:
        self._board = TensorBoardReport(folder) if "tensorboard" in plan.names else None
        self._others: list[BackgroundLogger] = []
        if "mlflow" in plan.names:

            def connect_mlflow() -> Client:
                from tune.loggers.clients.mlflow_runs import MlflowRun

                return MlflowRun(plan.mlflow_uri, plan.study, plan.run_name(number), plan.run_id(number), settings)

            self._others.append(BackgroundLogger("mlflow", connect_mlflow))
        if "wandb" in plan.names:

            def connect_wandb() -> Client:
                from tune.loggers.clients.wandb_runs import WandbRun

                return WandbRun(folder, plan.study, plan.sweep, plan.run_name(number), plan.run_id(number), settings)

            self._others.append(BackgroundLogger("wandb", connect_wandb))

    @property
    def warnings(self) -> list[str]:
        """One line for each logger that has failed."""
        return [line for other in self._others for line in other.warnings]

    def __call__(self, step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
        """Take what a run reports.

        Raises:
            OSError: TensorBoard's files cannot be written.
        """
        if self._board is not None:
            self._board(step, scalars, exhibits)
        for other in self._others:
            other(step, scalars, exhibits)

    def flush(self) -> None:
        """Write TensorBoard's files to the disk, and begin to send the epoch to the others.

        Raises:
            OSError: the files cannot be written.
        """
        for other in self._others:
            other.flush()
        if self._board is not None:
            self._board.flush()

    def close(self, state: RunState) -> None:
        """End the run at all loggers; a full disk is ignored, since the run has met it before."""
        for other in self._others:
            other.close(state)
        if self._board is not None:
            with suppress(OSError):
                self._board.close()


def check_loggers(names: Sequence[str], *, is_shared: bool = False) -> None:
    """Check that the loggers of a sweep can work here, and say where W&B's runs go without a login.

    Args:
        is_shared: whether trials run on nodes that do not see the sweep's folder.

    Raises:
        ConfigError: a package is missing, or nodes could not reach the store that MLflow would use.
    """
    for name in names:
        if name not in _EXTRAS:
            continue
        try:
            importlib.import_module(_EXTRAS[name])
        except ImportError as error:
            raise ConfigError(
                f"sweep.loggers: {name}: its package cannot be imported ({error}); install it with "
                f"pip install 'nuanced-speech[{name}]', or leave {name} out"
            ) from None
    if "mlflow" in names:
        from tune.loggers.clients.mlflow_runs import check_store

        check_store(is_shared)
    if "wandb" in names:
        from tune.loggers.clients.wandb_runs import is_offline_by_default

        if is_offline_by_default():
            logger.info(
                "wandb: no login and no WANDB_MODE, so it works offline: its runs are in the trials' folders; upload "
                "them later with: wandb sync DIR/trials/*/wandb/offline-run-*"
            )


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
