"""One run without Ray: the same folder, curves and checkpoints as a trial's, in this process."""

from collections.abc import Callable, Mapping
from pathlib import Path

from nuanced_core.config import RunConfig, write_yaml
from tune.outputs import BYTES_PER_TRIAL, Prepare, check_disk, create_folder, new_folder, origin
from tune.tensorboard import TensorBoardReport

__all__ = ["run_single"]

Say = Callable[[str], None]
Report = Callable[[int, Mapping[str, float]], None]


def run_single(
    config: RunConfig,
    *,
    outputs: Path,
    name: str,
    prepare: Prepare,
    train: Callable[[RunConfig, Path, Report, Say], object],
    say: Say,
) -> Path:
    """Train one run in the folder ``name`` of ``outputs``; returns the folder.

    ``prepare`` fetches and renders what the run needs, before anything is written; ``train`` runs it.

    Raises:
        ConfigError: the folder exists.
        DiskError: the disk is full, or the folder cannot be written.
    """
    folder = new_folder(outputs, name)
    check_disk(folder, BYTES_PER_TRIAL)
    record = origin(prepare([config], say))
    create_folder(folder, "config.yaml", config.model_dump(mode="json"))
    write_yaml(folder / "record.yaml", record)
    with TensorBoardReport(folder) as report:
        train(config, folder, report, say)
    say(f"curves: tensorboard --logdir {folder}")
    say(f"export: nuanced export {folder} -o {Path('models') / name}")
    return folder
