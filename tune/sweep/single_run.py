"""One training run without Ray: the same stages, curves and checkpoints as a trial's, in this process."""

import shlex
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.yaml_files import write_yaml
from nuanced_core.errors import ConfigError, StoppedError
from nuanced_core.exhibits.exhibit import Exhibit
from nuanced_core.paths import user_path
from nuanced_core.progress import leave_closed_terminal
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import train
from tune.cluster.disk import BYTES_PER_TRIAL, check_disk
from tune.cluster.node_preparation import Prepare, model_hashes
from tune.config.sweep_config import SETTINGS_FILE, load_run, run_with_absolute_places
from tune.loggers.tensorboard import TensorBoardReport
from tune.sweep.lock import DriverLock
from tune.sweep.record import create_folder, new_folder, provenance
from tune.sweep.signals import interrupt_on_signal, stop_on_signal
from tune.trial.protocol import CONFIG_FILE, Report

__all__ = ["SingleRunResult", "resume_single_run", "train_single_run"]

Train = Callable[[RunConfig, Path, Report], object]


@dataclass(frozen=True)
class SingleRunResult:
    """A finished run: its folder, and what to do next, in lines for people."""

    folder: Path
    lines: list[str]


def train_single_run(
    config: RunConfig, *, outputs: Path, name: str, prepare: Prepare = prepare, train: Train = train
) -> SingleRunResult:
    """Train one run in the new folder ``name`` of ``outputs``, which is removed if the run fails before its first step.

    Args:
        prepare: fetches and renders what the run needs, before anything is written.
        train: trains the run to its end.

    Raises:
        ConfigError: the folder exists.
        DiskError: the disk is full, or the folder cannot be written.
        StoppedError: a signal stopped the run, which can be resumed.
    """
    folder = new_folder(user_path(outputs), name)
    check_disk(folder, BYTES_PER_TRIAL)
    config = run_with_absolute_places(config)
    with interrupt_on_signal():
        record = provenance(model_hashes(prepare([config])))
        create_folder(folder, CONFIG_FILE, config.model_dump(mode="json"))
        first_step = threading.Event()
        try:
            write_yaml(folder / "record.yaml", record)
            return _train_in(folder, config, train, first_step)
        except BaseException:
            if not first_step.is_set():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def resume_single_run(
    folder: Path, overrides: Sequence[str] = (), *, prepare: Prepare = prepare, train: Train = train
) -> SingleRunResult:
    """Continue a run from its last checkpoint to its end; a finished one stays as it is.

    Raises:
        ConfigError: the folder holds no run, or ``overrides`` are given: a checkpoint belongs to its settings.
        DiskError: the folder cannot be written.
        StoppedError: a signal stopped the run, which can be resumed.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"{folder}: not the folder of a run (it holds no {CONFIG_FILE})")
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: a resumed run keeps its settings; leave it out")
    config = load_run(file)
    with interrupt_on_signal():
        prepare([config])
        return _train_in(folder, config, train, threading.Event())


def _train_in(folder: Path, config: RunConfig, train: Train, first_step: threading.Event) -> SingleRunResult:
    """Train in an existing folder; ``first_step`` is set when a step is done."""
    stop = threading.Event()
    quoted_folder = shlex.quote(str(folder))
    sweep = folder.absolute().parent.parent
    is_trial = folder.parent.name == "trials" and (sweep / SETTINGS_FILE).is_file()
    with (
        closing(DriverLock(sweep if is_trial else folder)),
        TensorBoardReport(folder) as board,
        stop_on_signal(stop.set),
    ):

        def report(step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
            first_step.set()
            board(step, scalars, exhibits)
            if stop.is_set():
                raise StoppedError(f"stopped after step {step}; resume with: nuanced train --resume {quoted_folder}")

        train(config, folder, report)
    leave_closed_terminal()
    export = f"nuanced export {quoted_folder} -o {shlex.quote(str(Path('models') / folder.name))}"
    return SingleRunResult(folder, [f"curves: nuanced board {quoted_folder}", f"export: {export}"])
