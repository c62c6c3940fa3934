"""Where the folders of trials can be read, and the scalars in their event files, by TensorBoard's own reader."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.compat import tf

from nuanced_core.errors import NuancedError, one_line
from tune.cluster.shared_storage import SharedFolder

__all__ = ["COLUMNS", "TrialFolders", "read_curves"]

logger = logging.getLogger(__name__)

COLUMNS = ("trial", "tag", "step", "wall_time", "value")
# 0: every point; 1: what is not read here, of which the reader keeps the latest.
_KEPT = {SCALARS: 0, "audio": 1, "images": 1, "histograms": 1, "compressedHistograms": 1, "tensors": 1}


def read_curves(folders: Mapping[int, Path], tags: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the scalars of trials, one row for each point, ordered by trial, tag and step.

    Files may be written meanwhile. A missing folder has no rows; of a damaged file what comes before the damage.

    Args:
        folders: by number of the trial.
        tags: names of the scalars; all if None.

    Returns:
        the columns ``trial``, ``tag``, ``step``, ``wall_time`` (seconds since 1970) and ``value``.
    """
    rows = [
        (number, tag, event.step, event.wall_time, event.value)
        for number, folder in sorted(folders.items())
        for tag, events in sorted(_scalars(folder, tags).items())
        for event in events
    ]
    types = {"trial": "int64", "tag": "object", "step": "int64", "wall_time": "float64", "value": "float64"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)


def _scalars(folder: Path, tags: Sequence[str] | None) -> dict[str, list[Any]]:
    if not folder.is_dir():
        return {}
    reader = EventAccumulator(str(folder), size_guidance=_KEPT)
    try:
        reader.Reload()
    except (OSError, DecodeError, tf.errors.OpError, MemoryError, OverflowError) as error:
        # The last two are of a record that says it is larger than memory.
        reason = one_line(error, None)
        logger.warning("%s: damaged event files, read up to the damage: %s", folder, reason)
    found = reader.Tags()[SCALARS]
    return {tag: reader.Scalars(tag) for tag in found if tags is None or tag in tags}


class TrialFolders:
    """The trials' folders of a sweep.

    Args:
        folder: of the sweep.
        shared: the setting ``sweep.shared``.
    """

    def __init__(self, folder: Path, shared: str | None) -> None:
        self._folder = folder
        self._shared = None if shared is None else _disk_path(shared, folder.name)

    def of(self, number: int, *, has_ended: bool) -> Path:
        """Return the folder of a trial, which need not exist.

        A trial works in shared storage until it has ended; then its folder is copied to the sweep's.
        """
        places = [root / "trials" / str(number) for root in (self._folder, self._shared) if root is not None]
        found = [place for place in (places if has_ended else reversed(places)) if place.is_dir()]
        return found[0] if found else places[0]


def _disk_path(shared: str, name: str) -> Path | None:
    """Return a sweep's folder in shared storage if that is on a disk; None if it cannot be read directly."""
    try:
        location = SharedFolder(shared).child(name).location
    except NuancedError as error:  # the variable that names it is not set here, for example
        logger.warning("trials that have not ended are left out: %s", error)
        return None
    return Path(location) if location.startswith("/") else None
