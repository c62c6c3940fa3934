"""TODO."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from nuanced_core.config.settings import RunConfig

__all__ = ["Report", "Run", "Start"]

Report = Callable[[int, Mapping[str, float]], None]


class Run(Protocol):
    """One training run that is under way; it writes its checkpoints and wavs itself, at each epoch's end."""

    epoch: int  # epochs finished
    scalars: dict[str, float]  # what ``run_epoch`` returned last, also if that was in another process

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to train."""

    def run_epoch(self) -> dict[str, float]:
        """Train to the end of an epoch and validate; returns scalars by name, ``val/loss`` among them.

        Where the report raises StoppedError, a checkpoint is written before that is passed on.
        """

    def close(self) -> None:
        """Give back what the run holds, but for the models that the next run of this process will want."""


Start = Callable[[RunConfig, Path, Report], Run]
