"""One run without Ray: the same folder, curves and checkpoints as a trial's, in this process."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.yaml_files import write_yaml
from nuanced_core.errors import ConfigError, StoppedError
from tune.cluster.disk import BYTES_PER_TRIAL, check_disk
from tune.cluster.node_preparation import Prepare, model_hashes
from tune.config.sweep_config import load_run
from tune.sweep.record import create_folder, new_folder, provenance
from tune.sweep.signals import stop_on_signal
from tune.trial.tensorboard import TensorBoardReport

__all__ = ["resume_single_run", "train_single_run"]

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"

Report = Callable[[int, Mapping[str, float]], None]


def train_single_run(
    config: RunConfig,
    *,
    outputs: Path,
    name: str,
    prepare: Prepare,
    train: Callable[[RunConfig, Path, Report], object],
) -> Path:
    """Train one run in the folder ``name`` of ``outputs``; returns the folder.

    ``prepare`` fetches and renders what the run needs, before anything is written; ``train`` runs it.

    Raises:
        ConfigError: the folder exists.
        DiskError: the disk is full, or the folder cannot be written.
    """
    folder = new_folder(outputs, name)
    check_disk(folder, BYTES_PER_TRIAL)
    record = provenance(model_hashes(prepare([config])))
    create_folder(folder, CONFIG_FILE, config.model_dump(mode="json"))
    write_yaml(folder / "record.yaml", record)
    return _train(config, folder, train)


def resume_single_run(
    folder: Path,
    overrides: Sequence[str],
    *,
    prepare: Prepare,
    train: Callable[[RunConfig, Path, Report], object],
) -> Path:
    """Let a run go on from its last checkpoint, to its end; one that is finished is left as it is.

    Raises:
        ConfigError: the folder holds no run, or ``overrides`` are given: a checkpoint is of its settings.
        DiskError: the folder cannot be written.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"{folder}: not the folder of a run (it holds no {CONFIG_FILE})")
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: a run goes on with the settings that it began with; leave it out")
    config = load_run(file)
    prepare([config])
    return _train(config, folder, train)


def _train(config: RunConfig, folder: Path, train: Callable[[RunConfig, Path, Report], object]) -> Path:
    stop = threading.Event()

    with TensorBoardReport(folder) as board, stop_on_signal(stop.set):

        def report(step: int, scalars: Mapping[str, float]) -> None:
            board(step, scalars)
            if stop.is_set():
                raise StoppedError(f"stopped after step {step}; go on with: nuanced train --resume {folder}")

        train(config, folder, report)
    logger.info("curves: tensorboard --logdir %s", folder)
    logger.info("export: nuanced export %s -o %s", folder, Path("models") / folder.name)
    return folder
