"""What a trial needs of a training run: the interface that ``nuanced_core.training.run.Run`` provides."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nuanced_core.config.settings import RunConfig
from nuanced_core.exhibits.exhibit import Exhibit

__all__ = ["CONFIG_FILE", "Report", "Run", "StartRun"]

CONFIG_FILE = "config.yaml"  # in the folder of a trial or a single run: its settings


class Report(Protocol):
    """What a run calls with the scalars of each step, and with those and the exhibits of each epoch."""

    def __call__(self, step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
        """Take scalars by name, and exhibits; raises StoppedError to stop the run."""


class Run(Protocol):
    """A training run in progress, which writes its checkpoints and audio itself at the end of each epoch."""

    epoch: int  # finished epochs
    scalars: dict[str, float]  # of the last finished epoch, also if another process ran it

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last epoch or run out of patience."""

    def run_epoch(self) -> dict[str, float]:
        """Train to the end of an epoch and validate; return scalars by name, ``val/loss`` among them.

        If the report raises StoppedError, the run writes a checkpoint and raises it again.
        """

    def close(self) -> None:
        """Release the run's memory, except for the models, which the next run in this process uses."""


# Starts a run in a folder, or continues it from the folder's last checkpoint.
StartRun = Callable[[RunConfig, Path, Report], Run]
