"""TODO."""

import os
import shutil
from pathlib import Path

from nuanced_core.errors import DiskError
from tune.config.sweep_settings import SweepSettings

__all__ = ["BYTES_PER_TRIAL", "check_disk", "disk_of_trials", "free_bytes"]

# Two checkpoints with Adam's state of an encoder of 10 million weights, and sound and curves; and these alone.
BYTES_PER_TRIAL = 300 * 2**20
BYTES_WITHOUT_CHECKPOINTS = 20 * 2**20


OUTPUTS_FIX = "choose another --outputs, run fewer trials, or keep fewer (sweep.keep_trials)"


def check_disk(folder: Path, needed: int, fix: str = OUTPUTS_FIX) -> None:
    """Refuse a disk that cannot hold ``needed`` bytes in ``folder``, which may not exist yet.

    Args:
        fix: what else than to free some space would help.

    Raises:
        DiskError: too little is free, or it cannot be written.
    """
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise DiskError(f"{there}: not a folder that can be written; {fix}")
    free = free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"{there}: {free / 2**30:.1f} GiB are free, {needed / 2**30:.1f} GiB may be needed; free some, {fix}"
        )


def disk_of_trials(settings: SweepSettings) -> int:
    """Bytes that a sweep's trials may need; of one whose budget is time, those of one trial."""
    trials = settings.trials or 1
    kept = min(trials, settings.keep_trials or trials)
    return kept * BYTES_PER_TRIAL + (trials - kept) * BYTES_WITHOUT_CHECKPOINTS


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of ``folder``, which may not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
