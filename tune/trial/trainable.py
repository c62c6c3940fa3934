"""The Ray actor that runs trials one after another and keeps the models that the first one loaded."""

import errno
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.tune as ray_tune

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.yaml_files import write_yaml
from nuanced_core.errors import DiskError, NuancedError, StoppedError
from nuanced_core.exhibits.exhibit import Exhibit
from tune.cluster.node_preparation import UnfitNodeError
from tune.cluster.shared_storage import SharedFolder, scratch_folder
from tune.config.space import Space
from tune.loggers.run_loggers import LoggerPlan, RunState, TrialLoggers, flat_settings
from tune.search.study import METRIC
from tune.trial.protocol import CONFIG_FILE, Run, StartRun
from tune.trial.reports import ERROR_FILE, pack_scalars, raise_without_secrets, write_error_file
from tune.trial.resources import CONTEXT, out_of_memory

__all__ = ["DISK_FULL", "STOP_FILE", "StyleEncoderTrial"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STOP_FILE = "stop"  # in the sweep's folder; while it exists, trials write a checkpoint and stop
# Seconds between two checks for the stop file, on a disk and in shared storage.
STOP_CHECK_INTERVAL, SHARED_STOP_CHECK_INTERVAL = 0.5, 5.0


class StyleEncoderTrial(ray_tune.Trainable):  # type: ignore[misc]
    """Runs the trial that its configuration describes; one Ray step is one epoch.

    A trial continues from the last checkpoint in its folder, if there is one, after its process or its sweep was
    killed. A NuancedError ends the trial with its line in the result's ``error``, and the actor takes the next trial.
    Any other error is raised, so that Ray discards a process that may be broken (after an illegal access, for example,
    a GPU fails every call of its process) and continues the trial in another one.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        start_run: StartRun,
        run: RunConfig,
        search: Space,
        threads: int,
        storage: SharedFolder,
        is_shared: bool = False,
        loggers: LoggerPlan | None = None,
        prepare_late_node: Callable[[], None] = lambda: None,
    ) -> None:
        """Store the trial; its run is started by the first step, which reports errors of the start as the trial's.

        Args:
            config: the trial, as ``StudySearcher.suggest`` returns it.
            start_run: starts or continues a run in a folder.
            run, search: the settings that the trial's parameters are applied to, and the space that applies them.
            threads: of torch.
            storage: the sweep's folder; a run stops after the step at which it finds a ``STOP_FILE`` there.
            is_shared: whether ``storage`` is shared storage that the trial's folder is copied to, instead of the disk
                that the trial works on.
            loggers: that the trial reports to; None: TensorBoard.
            prepare_late_node: prepares a node that joined after the first trial, or raises UnfitNodeError.
        """
        import torch

        torch.set_num_threads(threads)
        self._start_run, self._prepare_late_node = start_run, prepare_late_node
        self._base, self._search = run, search
        self._sweep_storage, self._is_shared = storage, is_shared
        self._trial = config
        self._copy: SharedFolder | None = None  # of the trial's folder, in shared storage
        self._run: Run | None = None
        self._plan = loggers or LoggerPlan()
        self._loggers: TrialLoggers | None = None
        self._warnings: list[str] = []  # of loggers, not yet passed on to the driver
        self._has_finite_loss = True
        self._stop_checked = 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial in the same process."""
        self.cleanup()
        self._trial = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run one epoch; return its packed scalars, ``epoch``, and ``done``, true when the run is finished.

        A trial that ends otherwise returns ``done`` and one of these, each with one line: ``interrupted``, ``disk``
        (the disk is full), ``unfit`` (the node cannot run trials), ``out_of_memory`` (with ``share``, the share of a
        GPU that would suffice), ``error``. Lines about loggers that fail are in ``warnings``.
        """
        try:
            result = self._step()
        except Exception:
            self._close_loggers("failed")
            raise
        if result["done"]:
            self._close_loggers(_state_of(result))
        elif self._loggers is not None:
            self._warnings += self._loggers.warnings
        warnings, self._warnings = self._warnings, []
        return {**result, "warnings": warnings} if warnings else result

    def _step(self) -> dict[str, Any]:
        try:
            result = self._epoch()
            self._push()
            return result
        except StoppedError as error:
            return {"done": True, **self._interrupted(error)}
        except UnfitNodeError as error:
            return {"done": True, "unfit": str(error)}
        except DiskError as error:
            return {"done": True, "disk": str(error)}
        except NuancedError as error:
            self._try_push()
            return {"done": True, "error": str(error)}
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:  # raised by TensorBoard's writer, for example
                return {"done": True, "disk": f"{self._folder}: cannot be written: {error.strerror}"}
            if _is_out_of_gpu_memory(error):
                return {"done": True, **out_of_memory(self._trial["gpus"])}
            write_error_file(self._folder, error)
            self._try_push()
            raise_without_secrets(error)  # Ray writes it to the disk
            raise

    def cleanup(self) -> None:
        """Close the run and its loggers; Ray calls this when the trial or the actor stops."""
        run, self._run = self._run, None
        if run is not None:
            run.close()
        self._close_loggers(self._state_when_stopped())
        if self._copy is not None:
            self._copy = None
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        """The folder that the trial works in, on its node's disk."""
        if self._is_shared:
            return scratch_folder(self._sweep_storage.location, self._trial["number"])
        return Path(self._trial["folder"])

    def _push(self) -> None:
        """Pass the epoch on to the loggers, and copy what changed in the trial's folder to shared storage, if any."""
        if self._loggers is not None:
            self._loggers.flush()
        if self._copy is not None:
            self._copy.push(self._folder)

    def _try_push(self) -> None:
        with suppress(DiskError, OSError):  # the trial has already failed for another reason
            self._push()

    def _close_loggers(self, state: RunState) -> None:
        loggers, self._loggers = self._loggers, None
        if loggers is None:
            return
        loggers.close(state)
        self._warnings += loggers.warnings
        if "wandb" in self._plan.names:  # it has written to the trial's folder
            self._try_push()

    def _state_when_stopped(self) -> RunState:
        """What became of a trial that Ray stops after an epoch; its process is not told."""
        if not self._has_finite_loss:
            return "failed"
        with suppress(DiskError):
            if self._sweep_storage.exists(STOP_FILE):
                return "interrupted"
        return "pruned"

    def _interrupted(self, error: StoppedError) -> dict[str, str]:
        try:
            self._push()
        except (DiskError, OSError) as full:  # an OSError is raised by TensorBoard's writer
            return {"disk": str(full)}
        return {"interrupted": str(error)}

    def _epoch(self) -> dict[str, Any]:
        is_first, run = self._run is None, self._run or self._start()
        # A run that continues from a checkpoint has scalars that the study may not know yet.
        scalars = run.scalars if is_first and run.epoch else run.run_epoch()
        self._has_finite_loss = math.isfinite(scalars.get(METRIC, math.nan))
        return {**pack_scalars(scalars), "epoch": run.epoch, "done": run.finished}

    def _start(self) -> Run:
        """The stages before the first step: settings, node, folder, event files, run."""
        config = self._search.apply(self._base, self._trial["params"])
        self._prepare_late_node()
        folder = self._folder
        if self._is_shared:
            self._copy = self._sweep_storage.child("trials", str(self._trial["number"]))
            self._copy.remove(ERROR_FILE)
            self._copy.pull(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).unlink(missing_ok=True)  # written by an earlier process
        write_yaml(folder / CONFIG_FILE, config.model_dump(mode="json"))
        settings = flat_settings(config.model_dump(mode="json"))
        self._loggers = TrialLoggers(self._plan, self._trial["number"], folder, settings)
        self._cap_gpu_memory()
        self._run = self._start_run(config, folder, self._report)
        return self._run

    def _report(self, step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
        if self._loggers is not None:
            self._loggers(step, scalars, exhibits)
        now = time.monotonic()
        if now - self._stop_checked > (SHARED_STOP_CHECK_INTERVAL if self._is_shared else STOP_CHECK_INTERVAL):
            self._stop_checked = now
            with suppress(DiskError):  # storage that does not answer may answer at the next check
                if self._sweep_storage.exists(STOP_FILE):
                    raise StoppedError(f"step {step}: stopped with its sweep")

    def _cap_gpu_memory(self) -> None:
        """Limit this process to its share of a GPU: the share itself isolates nothing."""
        import torch

        share = self._trial["gpus"]
        if 0 < share < 1 and torch.cuda.is_available():
            # The limit is of torch's tensors: the process also holds its CUDA context.
            context = CONTEXT / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(max(share - context, share / 2))
            torch.cuda.reset_peak_memory_stats()


def _state_of(result: Mapping[str, Any]) -> RunState:
    """Return the state of a trial whose last result is ``result``."""
    if "error" in result or "out_of_memory" in result:
        return "failed"
    return "interrupted" if {"interrupted", "disk", "unfit"} & result.keys() else "complete"


def _is_out_of_gpu_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)
