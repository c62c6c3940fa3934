"""The journal file of a study: appended without waiting for the disk, synced on request, repaired after a crash."""

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from nuanced_core.errors import DiskError

__all__ = ["STUDY_FILE", "StudyJournal", "repair_journal", "sync_study"]

STUDY_FILE = "study.journal"  # in the folder of a sweep


class StudyJournal(JournalFileBackend):
    """Optuna's journal file backend, except that it waits for the disk in ``sync`` instead of after each line.

    A trial writes about fifteen lines, and waiting for each of them took longer than most of the driver's other work.
    A killed process loses nothing; a machine that loses power may lose what was written after the last ``sync``.
    """

    _unsynced = False
    line = 0  # the last that was read, from 1

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the entries from the one of this number on."""
        for self.line, log in enumerate(super().read_logs(log_number_from), log_number_from + 1):
            yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append ``logs``, all of them or, if the disk is full, none.

        Raises:
            OSError: the file cannot be written.
        """
        unwritten = memoryview("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
        self._unsynced = True
        self._lock.acquire()  # the dashboard may write too
        try:
            with Path(self._file_path).open("ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    while unwritten:
                        unwritten = unwritten[file.write(unwritten) :]
                except OSError:
                    file.truncate(size)
                    raise
        finally:
            self._lock.release()

    def sync(self) -> None:
        """Wait until everything that was appended is on the disk.

        Raises:
            OSError: the disk cannot be written.
        """
        if self._unsynced:
            self._unsynced = False
            with Path(self._file_path).open("ab") as file:
                os.fsync(file.fileno())


def sync_study(study: optuna.Study) -> None:
    """Wait until everything in the study is on the disk, if it is stored in a journal file.

    Raises:
        OSError: the disk cannot be written.
    """
    backend = getattr(study._storage, "_backend", None)
    if isinstance(backend, StudyJournal):
        backend.sync()


def repair_journal(folder: Path) -> None:
    """Remove what a killed driver left: its locks on the journal, and everything after the last complete line.

    A machine that lost power may leave more than an incomplete line. Only the process that drives the sweep may call
    this.

    Raises:
        DiskError: the file cannot be written.
    """
    path = folder / STUDY_FILE
    try:
        for lock in folder.glob(f"{STUDY_FILE}.lock*"):  # Optuna renames a lock before it removes it
            lock.unlink(missing_ok=True)
        if not path.is_file():
            return
        with path.open("rb+") as file:
            text = file.read()
            complete = len(text)
            while complete and not _ends_with_complete_line(text[:complete]):
                complete = text.rfind(b"\n", 0, complete - 1) + 1
            if complete < len(text):
                file.truncate(complete)
    except OSError as error:
        raise DiskError(f"{path}: cannot be repaired: {error.strerror}") from None


def _ends_with_complete_line(text: bytes) -> bool:
    if not text.endswith(b"\n"):
        return False
    try:
        json.loads(text[text.rfind(b"\n", 0, -1) + 1 :])
    except (ValueError, RecursionError):
        return False
    return True
