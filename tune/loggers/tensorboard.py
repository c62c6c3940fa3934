"""Event files for TensorBoard: scalars, sounds and pictures of a run, and summaries encoded as events."""

import io
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.audio import metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from nuanced_core.exhibits.exhibit import Exhibit, Sound
from tune.loggers.clients.media import wav

__all__ = ["EVENT_FILE", "TensorBoardReport", "encode_summaries"]

EVENT_FILE = "events.out.tfevents"  # what the name of each event file begins with
FLUSH_INTERVAL = 10.0  # seconds after which a point is written, if nobody calls ``flush``
_FILE_VERSION = "brain.Event:2"  # of the first event of a file; with it, TensorBoard purges only where it is told to


class TensorBoardReport:
    """Writes event files in ``folder``; it is called with a step, the step's scalars by name, and its exhibits.

    In a folder with event files the run continues from a checkpoint: earlier points at its first step and later are
    purged, since they were written after that checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._flushed = time.monotonic()
        if not any(folder.glob(f"{EVENT_FILE}*")):
            # The step marks the beginning: TensorBoard's slower reader takes the first mark that it meets for that of a
            # new run, and would not purge at the first continuation.
            self._begin(purged_from=0)

    def __call__(self, step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
        """Add one point at ``step`` to the curve of each name, and the exhibits."""
        if self._file is None:
            self._begin(purged_from=step)
        for name, value in scalars.items():
            self._add(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))
        for exhibit in exhibits:
            self._add(step=step, summary=_exhibit_summary(exhibit))
        if time.monotonic() - self._flushed > FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write everything that was reported so far to the files."""
        if self._file is not None:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left and close the files."""
        if self._file is not None:
            self._file.close()

    def _begin(self, purged_from: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / _later_name(self._folder)).open("xb")
        self._add(file_version=_FILE_VERSION)
        self._add(step=purged_from, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def _add(self, **fields: Any) -> None:
        RecordWriter(self._file).write(Event(wall_time=time.time(), **fields).SerializeToString())

    def __enter__(self) -> "TensorBoardReport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def _later_name(folder: Path) -> str:
    """Return the name of a new event file, which is after those in ``folder``.

    TensorBoard reads files in the order of their names: second of the start, host, process. The clock may have been set
    back, or the run goes on in the same second, or on a machine whose clock is behind.
    """
    starts = (path.name.removeprefix(f"{EVENT_FILE}.").partition(".")[0] for path in folder.glob(f"{EVENT_FILE}.*"))
    newest = max((int(start) for start in starts if start.isdecimal()), default=0)
    return f"{EVENT_FILE}.{max(int(time.time()), newest + 1):010d}.{socket.gethostname()}.{os.getpid()}"


def _exhibit_summary(exhibit: Exhibit) -> Any:
    """Return an exhibit as TensorBoard's plugins for audio, which plays WAV alone, and for images show it."""
    if isinstance(exhibit, Sound):
        # With metadata that say WAV: the fast data server forgets the type of an old-style audio summary.
        data = metadata.create_summary_metadata(exhibit.name, "", metadata.Encoding.Value("WAV"))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1), TensorShapeProto.Dim(size=2)])
        label = b""
        tensor = TensorProto(
            dtype="DT_STRING", tensor_shape=shape, string_val=[wav(exhibit.audio, exhibit.rate), label]
        )
        return Summary(value=[Summary.Value(tag=exhibit.name, metadata=data, tensor=tensor)])
    image = Summary.Image(height=exhibit.height, width=exhibit.width, colorspace=3, encoded_image_string=exhibit.png)
    return Summary(value=[Summary.Value(tag=exhibit.name, image=image)])


def encode_summaries(summaries: Iterable[tuple[int, Any]], *, begins_file: bool = True) -> bytes:
    """Return the content of an event file, or what is appended to one.

    Args:
        summaries: (step, ``Summary`` message).
        begins_file: whether the content stands at the beginning of a file.
    """
    now = time.time()
    events = [Event(wall_time=now, file_version=_FILE_VERSION)] if begins_file else []
    events += [Event(wall_time=now, step=step, summary=summary) for step, summary in summaries]
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString())
    return content.getvalue()
