"""TODO."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from nuanced_core.errors import DiskError

__all__ = ["STUDY_FILE", "StudyJournal", "repair_journal", "sync_study"]
STUDY_FILE = "study.journal"


class StudyJournal(JournalFileBackend):
    """Optuna's journal file, but what is written reaches the disk at ``sync``, not line by line.

    Waiting for the disk at each of a trial's fifteen lines took longer than most else that the driver does. What a
    killed process had written is there all the same; what a machine that lost its power had, up to the last ``sync``.
    """

    _unsynced = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write the lines, or, if the disk is full, nothing."""
        left = memoryview("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
        self._unsynced = True
        self._lock.acquire()  # the dashboard may write too
        try:
            with Path(self._file_path).open("ab", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(before)
                    raise
        finally:
            self._lock.release()

    def sync(self) -> None:
        """Wait for the disk."""
        if self._unsynced:
            self._unsynced = False
            with Path(self._file_path).open("ab") as file:
                os.fsync(file.fileno())


def sync_study(study: optuna.Study) -> None:
    """Wait until what the study was told is on the disk, where it is kept in a journal file.

    Raises:
        OSError: the disk cannot be written.
    """
    backend = getattr(study._storage, "_backend", None)
    if isinstance(backend, StudyJournal):
        backend.sync()


def repair_journal(folder: Path) -> None:
    """Take back what a driver that was killed had half written; for the one that drives the sweep now.

    A machine that lost its power may leave more than half a line: all behind the last whole one.

    Raises:
        DiskError: the file cannot be written.
    """
    path = folder / STUDY_FILE
    try:
        (folder / f"{STUDY_FILE}.lock").unlink(missing_ok=True)
        if not path.is_file():
            return
        with path.open("rb+") as file:
            text = file.read()
            whole = len(text)
            while whole and not _is_whole(text[:whole]):
                whole = text.rfind(b"\n", 0, whole - 1) + 1
            if whole < len(text):
                file.truncate(whole)
    except OSError as error:
        raise DiskError(f"{path}: cannot be mended: {error.strerror}") from None


def _is_whole(text: bytes) -> bool:
    """Whether the last line is one that was written to its end."""
    if not text.endswith(b"\n"):
        return False
    try:
        json.loads(text[text.rfind(b"\n", 0, -1) + 1 :])
    except ValueError:
        return False
    return True
