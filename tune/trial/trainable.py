"""The Ray actor that runs trials one after another, keeping the models that the first one loaded."""

import errno
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.tune as ray_tune

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.yaml_files import write_yaml
from nuanced_core.errors import DiskError, NuancedError, StoppedError
from tune.cluster.node_preparation import UnfitNodeError
from tune.cluster.shared_storage import SharedFolder, scratch_folder
from tune.config.space import Space
from tune.trial.gpu_share import CONTEXT, out_of_memory
from tune.trial.protocol import Run, Start
from tune.trial.reports import ERROR_FILE, SCALARS, write_error_file
from tune.trial.tensorboard import TensorBoardReport

__all__ = ["STOP_FILE", "StyleEncoderTrial"]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STOP_FILE = "stop"  # in the sweep's folder; while it is there, trials write a checkpoint and stop
LOOK_EVERY, LOOK_EVERY_SHARED = 0.5, 5.0  # seconds between two looks for it: on a disk, and in shared storage


class StyleEncoderTrial(ray_tune.Trainable):  # type: ignore[misc]
    """Runs the trial that its configuration describes, an epoch a step.

    A trial goes on from the last checkpoint in its folder, if there is one: after its process was killed, or its
    sweep was. An error that the project names ends the trial with its line in the result's ``error``, and the actor
    goes on to the next trial. Any other error is raised, so that Ray discards a process that may be broken (after
    an illegal access, a GPU serves its process no more) and lets the trial go on in another one.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        start: Start,
        run: RunConfig,
        search: Space,
        threads: int,
        sweep: SharedFolder,
        is_shared: bool = False,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Note the trial; ``start`` begins its run at the first step, where its errors are its own.

        Args:
            run, search: what the trial's settings are put into, and how.
            sweep: the sweep's folder; a run is interrupted at the step after which it holds a ``STOP_FILE``.
            is_shared: whether that is storage to which the trial's folder is copied, not the disk that it works on.
            ready: prepares the node, where that was not done before the first trial, or raises UnfitNodeError.
        """
        import torch

        torch.set_num_threads(threads)
        self._start, self._ready = start, ready
        self._base, self._search = run, search
        self._sweep, self._is_shared = sweep, is_shared
        self._trial = config
        self._copy: SharedFolder | None = None  # of the trial's folder
        self._run: Run | None = None
        self._board: TensorBoardReport | None = None
        self._looked = 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial on in the same process."""
        self.cleanup()
        self._trial = new_config
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: its scalars, packed, ``epoch``, and ``done`` when the run is finished.

        Else ``done`` and one of ``interrupted``, ``disk`` (the disk is full), ``unfit`` (the node is not fit for
        trials), ``out_of_memory`` (with ``share``, that of a GPU that would do) and ``error``, each in one line.
        """
        try:
            result = self._epoch()
            self._push()
            return result
        except StoppedError as error:
            return {"done": True, **self._stopped(error)}
        except UnfitNodeError as error:
            return {"done": True, "unfit": str(error)}
        except DiskError as error:
            return {"done": True, "disk": str(error)}
        except NuancedError as error:
            self._push_what_there_is()
            return {"done": True, "error": str(error)}
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:  # of TensorBoard's writer, say
                return {"done": True, "disk": f"{self._folder}: cannot be written: {error.strerror}"}
            if _is_out_of_gpu_memory(error):
                return {"done": True, **out_of_memory(self._trial["gpus"])}
            write_error_file(self._folder, error)
            self._push_what_there_is()
            raise

    def cleanup(self) -> None:
        """Close the run and its curves; Ray calls this when the actor stops."""
        run, board = self._run, self._board
        self._run = self._board = None
        if run is not None:
            run.close()
        if board is not None:
            with suppress(OSError):  # the disk is full, which the step has told
                board.close()
        if self._copy is not None:
            self._copy = None
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        """Where the trial works."""
        if self._is_shared:
            return scratch_folder(self._sweep.place, self._trial["number"])
        return Path(self._trial["folder"])

    def _push(self) -> None:
        if self._copy is not None:
            if self._board is not None:
                self._board.flush()
            self._copy.push(self._folder)

    def _push_what_there_is(self) -> None:
        with suppress(DiskError):  # the trial has failed already, for a reason of its own
            self._push()

    def _stopped(self, error: StoppedError) -> dict[str, str]:
        try:
            self._push()
        except DiskError as full:
            return {"disk": str(full)}
        return {"interrupted": str(error)}

    def _epoch(self) -> dict[str, Any]:
        begun, run = self._run is None, self._run or self._begin()
        # A run that goes on from a checkpoint has scalars of which the study may not have been told.
        scalars = run.scalars if begun and run.epoch else run.run_epoch()
        if self._board is not None:
            self._board.flush()
        return {SCALARS: json.dumps(scalars), "epoch": run.epoch, "done": run.finished}

    def _begin(self) -> Run:
        config = self._search.apply(self._base, self._trial["params"])
        self._ready()
        folder = self._folder
        if self._is_shared:
            self._copy = self._sweep.child("trials", str(self._trial["number"]))
            self._copy.remove(ERROR_FILE)
            self._copy.pull(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).unlink(missing_ok=True)  # of a process before this one
        write_yaml(folder / "config.yaml", config.model_dump(mode="json"))
        self._board = TensorBoardReport(folder, hparams=self._trial["params"])
        self._cap_memory()
        self._run = self._start(config, folder, self._report)
        return self._run

    def _report(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._board is not None:
            self._board(step, scalars)
        now = time.monotonic()
        if now - self._looked > (LOOK_EVERY_SHARED if self._is_shared else LOOK_EVERY):
            self._looked = now
            with suppress(DiskError):  # storage that does not answer now does so at the next look
                if self._sweep.exists(STOP_FILE):
                    raise StoppedError(f"step {step}: stopped with its sweep")

    def _cap_memory(self) -> None:
        """A share of a GPU isolates nothing by itself: the process may take so much of the card and no more."""
        import torch

        share = self._trial["gpus"]
        if 0 < share < 1 and torch.cuda.is_available():
            # What torch may take: the process holds its CUDA context beside that.
            context = CONTEXT / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(max(share - context, share / 2))
            torch.cuda.reset_peak_memory_stats()


def _is_out_of_gpu_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)
