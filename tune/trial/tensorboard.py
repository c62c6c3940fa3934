"""Event files of a run for TensorBoard: its scalars, and its searched settings in the HPARAMS tab."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

__all__ = ["TensorBoardReport"]

# The columns of results in the HPARAMS tab.
_COMPARED = ("val/loss", "val/stft", "val/style", "val/skill")


class TensorBoardReport:
    """Writes scalars as event files in ``folder``; it is called with a step and the step's scalars by name.

    In a folder with event files the run continues from a checkpoint: earlier points at its first step and later are
    purged, since they were written after that checkpoint.
    """

    def __init__(self, folder: Path, hparams: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        if not any(folder.glob("events.out.*")):
            self._writer = SummaryWriter(str(folder))
            if hparams:
                _write_hparams(self._writer, hparams)

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add one point at ``step`` to the curve of each name."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write everything that was reported so far to the files."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "TensorBoardReport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def _write_hparams(writer: SummaryWriter, hparams: Mapping[str, Any]) -> None:
    # SummaryWriter.add_hparams would write them to a separate run folder, with copies of the metrics.
    plain = {name: _as_hparam(value) for name, value in hparams.items()}
    experiment, start, end = hparams_summaries(plain, dict.fromkeys(_COMPARED, 0.0))  # type: ignore[no-untyped-call]
    for summary in (experiment, start, end):
        writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]


def _as_hparam(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
