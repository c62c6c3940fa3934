"""The Ray actor that runs trials one after another, keeping the models that the first one loaded."""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray.tune as ray_tune

from nuanced_core.config import RunConfig, validate, write_yaml
from nuanced_core.errors import NuancedError
from tune.tensorboard import TensorBoardReport

__all__ = ["ERROR_FILE", "Report", "Run", "Start", "StyleEncoderTrial"]

# In the folder of a trial that met an unexpected error: the reason in one line, then the traceback.
ERROR_FILE = "error.txt"

Report = Callable[[int, Mapping[str, float]], None]


class Run(Protocol):
    """One training run that is under way; it writes its checkpoints and wavs itself, at each epoch's end."""

    epoch: int  # epochs finished

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to train."""

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch and validate; returns scalars by name, ``val/loss`` among them."""

    def save(self, file: Path) -> None:
        """Write a whole checkpoint; a reader sees all of it or nothing."""

    def close(self) -> None:
        """Give back what the run holds, but for the models that the next run of this process will want."""


Start = Callable[[RunConfig, Path, Report], Run]


class StyleEncoderTrial(ray_tune.Trainable):  # type: ignore[misc]
    """Runs the trial that its configuration describes, an epoch a step.

    An error that the project names ends the trial with its line in the result's ``error``, and the actor goes
    on to the next trial. Any other error is raised, so that Ray discards a process that may be broken (after
    an illegal access, say, a GPU serves its process no more).
    """

    def setup(self, config: dict[str, Any], *, start: Start, threads: int) -> None:
        """Note the trial; ``start`` begins its run at the first step, where its errors are its own."""
        import torch

        torch.set_num_threads(threads)
        self._start = start
        self._trial = config
        self._run: Run | None = None
        self._board: TensorBoardReport | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial on in the same process."""
        self.cleanup()
        self._trial = new_config
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: its scalars, ``epoch``, and ``done`` when the run is finished."""
        try:
            return self._epoch()
        except NuancedError as error:
            return {"done": True, "error": str(error)}
        except Exception as error:
            _leave_reason(Path(self._trial["folder"]), error)
            raise

    def cleanup(self) -> None:
        """Close the run and its curves; Ray calls this when the actor stops."""
        run, board = self._run, self._board
        self._run = self._board = None
        if run is not None:
            run.close()
        if board is not None:
            board.close()

    def _epoch(self) -> dict[str, Any]:
        run = self._run or self._begin()
        scalars = run.run_epoch()
        if self._board is not None:
            self._board.flush()
        return {**scalars, "epoch": run.epoch, "done": run.finished}

    def _begin(self) -> Run:
        config = validate(RunConfig, self._trial["run"], f"trial {self._trial['number']}")
        folder = Path(self._trial["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(folder / "config.yaml", config.model_dump(mode="json"))
        self._board = TensorBoardReport(folder, hparams=self._trial["params"])
        self._run = self._start(config, folder, self._board)
        return self._run


def _leave_reason(folder: Path, error: Exception) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{reason}\n\n{''.join(traceback.format_exception(error))}"
    (folder / ERROR_FILE).write_text(text, encoding="utf-8")
