"""The scalars in TensorBoard's event files as a data frame, read with TensorBoard's own reader."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.compat import tf

__all__ = ["COLUMNS", "read_curves"]

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


def _scalars(folder: Path, tags: Sequence[str] | None) -> dict[str, list[object]]:
    if not folder.is_dir():
        return {}
    reader = EventAccumulator(str(folder), size_guidance=_KEPT)
    try:
        reader.Reload()
    except (OSError, DecodeError, tf.errors.OpError) as error:
        logger.warning("%s: damaged event files, read up to the damage: %s", folder, " ".join(str(error).split()))
    found = reader.Tags()[SCALARS]
    return {tag: reader.Scalars(tag) for tag in found if tags is None or tag in tags}
