"""The Ray actor that runs trials one after another, keeping the models that the first one loaded."""

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray.tune as ray_tune

from nuanced_core.config import RunConfig, validate, write_yaml
from nuanced_core.errors import DiskError, NuancedError, StoppedError
from tune.tensorboard import TensorBoardReport

__all__ = ["ERROR_FILE", "SHARES", "Report", "Run", "Start", "StyleEncoderTrial", "out_of_memory"]

# In the folder of a trial that met an unexpected error: the reason in one line, then the traceback.
ERROR_FILE = "error.txt"
LOOK_EVERY = 0.5  # seconds between two looks for the stop file
SHARES = (0.1, 0.125, 0.2, 0.25, 1 / 3, 0.5, 1.0)  # of a GPU: so many trials, 10 to 1, fill it
HEADROOM = 1.3  # times what a trial held when it asked for more

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


class StyleEncoderTrial(ray_tune.Trainable):  # type: ignore[misc]
    """Runs the trial that its configuration describes, an epoch a step.

    A trial goes on from the last checkpoint in its folder, if there is one: after its process was killed, or its
    sweep was. An error that the project names ends the trial with its line in the result's ``error``, and the actor
    goes on to the next trial. Any other error is raised, so that Ray discards a process that may be broken (after
    an illegal access, say, a GPU serves its process no more) and lets the trial go on in another one.
    """

    def setup(self, config: dict[str, Any], *, start: Start, threads: int, stop_file: Path) -> None:
        """Note the trial; ``start`` begins its run at the first step, where its errors are its own.

        The run is interrupted at the step after which ``stop_file`` exists.
        """
        import torch

        torch.set_num_threads(threads)
        self._start = start
        self._stop_file = stop_file
        self._trial = config
        self._run: Run | None = None
        self._board: TensorBoardReport | None = None
        self._looked = 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial on in the same process."""
        self.cleanup()
        self._trial = new_config
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: its scalars, ``epoch``, and ``done`` when the run is finished.

        Else ``done`` and one of ``interrupted``, ``disk`` (the disk is full), ``out_of_memory`` (with ``share``, that
        of a GPU that would do) and ``error``, each in one line.
        """
        try:
            return self._epoch()
        except StoppedError as error:
            return {"done": True, "interrupted": str(error)}
        except DiskError as error:
            return {"done": True, "disk": str(error)}
        except NuancedError as error:
            return {"done": True, "error": str(error)}
        except Exception as error:
            if _is_out_of_gpu_memory(error):
                return {"done": True, **out_of_memory(self._trial["gpus"])}
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
        begun, run = self._run is None, self._run or self._begin()
        if begun and run.epoch:
            # It goes on from a checkpoint, of which the study may not have been told.
            return {**run.scalars, "epoch": run.epoch, "done": run.finished}
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
        self._cap_memory()
        self._run = self._start(config, folder, self._report)
        return self._run

    def _report(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._board is not None:
            self._board(step, scalars)
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY:
            self._looked = now
            if self._stop_file.exists():
                raise StoppedError(f"step {step}: stopped with its sweep")

    def _cap_memory(self) -> None:
        """A share of a GPU isolates nothing by itself: the process may take so much of the card and no more."""
        import torch

        share = self._trial["gpus"]
        if 0 < share < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(share)
            torch.cuda.reset_peak_memory_stats()


def out_of_memory(share: float, *, peak: float | None = None) -> dict[str, Any]:
    """What a trial that ran out of its share of a GPU reports: ``out_of_memory``, one line, and ``share`` for a retry.

    Args:
        share: of a GPU that it had.
        peak: of the card's memory that it held at most; measured here if None.
    """
    import torch

    if peak is None and not torch.cuda.is_available():
        peak = share
    elif peak is None:
        held = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
        peak = max(held, min(share, 1.0))
    wanted = next((part for part in SHARES if part >= HEADROOM * peak and part > share), 1.0)
    told = f"out of GPU memory at {peak:.0%} of the card; a share of {wanted:g} may do: sweep.gpus_per_trial={wanted:g}"
    return {"out_of_memory": told, "share": wanted}


def _is_out_of_gpu_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _leave_reason(folder: Path, error: Exception) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{reason}\n\n{''.join(traceback.format_exception(error))}"
    (folder / ERROR_FILE).write_text(text, encoding="utf-8")
