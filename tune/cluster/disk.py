"""Free disk space, checked before a sweep or a run begins."""

import os
import shutil
from pathlib import Path

from nuanced_core.errors import DiskError
from tune.config.sweep_settings import SweepSettings

__all__ = [
    "BYTES_PER_TRIAL",
    "BYTES_WITHOUT_CHECKPOINTS",
    "OUTPUTS_FIX",
    "check_disk",
    "free_bytes",
    "trials_disk_bytes",
]

# A trial's two checkpoints, with Adam's state of an encoder of 10 million weights, its sound and its curves.
BYTES_PER_TRIAL = 300 * 2**20
# Its sound and curves alone.
BYTES_WITHOUT_CHECKPOINTS = 20 * 2**20
OUTPUTS_FIX = "choose another --outputs, run fewer trials, or keep fewer (sweep.keep_trials)"


def check_disk(folder: Path, needed: int, fix: str = OUTPUTS_FIX) -> None:
    """Check that a folder can be written and that its disk has enough space.

    Args:
        folder: may not exist yet.
        needed: bytes.
        fix: what the error suggests besides freeing space.

    Raises:
        DiskError: less is free, or the folder cannot be written.
    """
    parent = _existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DiskError(f"{parent}: not a folder that can be written; {fix}")
    free = free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"{parent}: {free / 2**30:.1f} GiB are free, {needed / 2**30:.1f} GiB may be needed; free some, {fix}"
        )


def trials_disk_bytes(settings: SweepSettings) -> int:
    """Return the bytes that a sweep's trials may need; if the budget is time, those of one trial."""
    trials = settings.trials or 1
    kept = min(trials, settings.keep_trials or trials)
    return kept * BYTES_PER_TRIAL + (trials - kept) * BYTES_WITHOUT_CHECKPOINTS


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of ``folder``, which may not exist yet."""
    return shutil.disk_usage(_existing_parent(folder)).free


def _existing_parent(folder: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
