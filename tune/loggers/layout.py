"""The page of TensorBoard's Custom Scalars tab: charts that put together what belongs together."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from nuanced_core.errors import DiskError
from tune.cluster.shared_storage import SharedFolder
from tune.loggers.tensorboard import EVENT_FILE, encode_summaries

__all__ = ["LAYOUT_RUN", "write_layout"]

logger = logging.getLogger(__name__)

LAYOUT_RUN = "layout"
_ROWS = "(val|baseline|nearest|ridge|oracle)"
# Charts by category; of each chart the expressions, one of which a scalar's name has to match.
_CHARTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "Validation": {
        "loss, and that of the baselines": [rf"{_ROWS}/loss$"],
        "skill": [r"val/skill$"],
        "spectral loss (stft)": [rf"{_ROWS}/stft$"],
        "style loss": [rf"{_ROWS}/style$"],
    },
    "Validation by group": {
        "sex": [r"val_groups/sex_.*"],
        "accent": [r"val_groups/accent_.*"],
        "condition": [r"val_groups/condition_.*"],
    },
    "Training": {
        "total loss": [r"loss/total$"],
        "terms": [r"loss/(?!total).*"],
        "weighted terms": [r"weighted/.*"],
        "learning rate": [r"train/learning_rate$"],
    },
    "People": {"identity": [rf"{_ROWS}/identity$"], "pitch": [rf"{_ROWS}/pitch$"]},
    "Layer weights": {"weights of Whisper's layers": [r"layers/.*"]},
    "Gradient": {"norm of all parts": [r"train/gradient_norm$"], "norm by part": [r"gradient/.*"]},
    "Speed and memory": {
        "steps per second": [r"train/steps_per_second$"],
        "speech per step (s)": [r"train/speech_seconds$"],
        "peak memory (GB)": [r"train/.*memory.*"],
    },
}
_CLOSED = ("People", "Layer weights")  # at first: not every run has them


def write_layout(folder: Path, copy: SharedFolder | None = None) -> None:
    """Write the page to a run of its own in ``folder``, which contains runs, unless it is there already.

    What cannot be written is a warning.

    Args:
        copy: ``folder`` in shared storage, where the same is written.
    """
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=category,
                closed=category in _CLOSED,
                chart=[
                    layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
                    for title, tags in charts.items()
                ],
            )
            for category, charts in _CHARTS.items()
        ]
    )
    text = layout.SerializeToString(deterministic=True)
    name = f"{EVENT_FILE}.{hashlib.sha256(text).hexdigest()[:12]}"
    run = folder / LAYOUT_RUN
    earlier = sorted(run.glob(f"{EVENT_FILE}*"))
    if [file.name for file in earlier] == [name]:
        return
    tensor = TensorProto(dtype="DT_STRING", string_val=[text], tensor_shape=TensorShapeProto())
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=metadata.create_summary_metadata())
    content = encode_summaries([(0, Summary(value=[value]))])
    try:
        run.mkdir(parents=True, exist_ok=True)
        part = run / "layout.part"  # not a name that TensorBoard reads
        part.write_bytes(content)
        part.replace(run / name)
        for file in earlier:
            file.unlink(missing_ok=True)
        if copy is not None:
            copy.child(LAYOUT_RUN).write(name, content)
    except (OSError, DiskError) as error:
        logger.warning("TensorBoard's Custom Scalars tab has no page: %s", error)
