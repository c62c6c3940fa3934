"""The journal file of a study: appended without waiting for the disk, synced on request, repaired after a crash."""

import copy
import json
import os
from collections.abc import Container, Generator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.errors import DiskError

__all__ = ["STUDY_FILE", "StudyJournal", "StudyStorage", "repair_journal", "sync_study"]

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


class StudyStorage(JournalStorage):
    """Optuna's journal storage, except that a look at all trials costs only those that may have changed since the last.

    For each trial that is chosen, Optuna looks for enqueued ones, and a sampler for those that it learns from.
    """

    def __init__(self, backend: StudyJournal) -> None:
        super().__init__(backend)
        self._seen: dict[int, list[FrozenTrial]] = {}  # by study
        self._unfinished: dict[int, list[int]] = {}  # numbers of trials that may change

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in these states, all if it is None, by number.

        Raises:
            KeyError: there is no such study.
        """
        with self._thread_lock:
            self._sync_with_backend()
            self._replay_result.get_study(study_id)
            trials = self._up_to_date(study_id)
            if states is None:
                found = list(trials)
            elif any(state.is_finished() and state in states for state in TrialState):
                found = [trial for trial in trials if trial.state in states]
            else:
                found = [trials[number] for number in self._unfinished[study_id] if trials[number].state in states]
            return copy.deepcopy(found) if deepcopy else found

    def _up_to_date(self, study_id: int) -> list[FrozenTrial]:
        ids = self._replay_result._study_id_to_trial_ids[study_id]
        seen = self._seen.setdefault(study_id, [])
        unfinished = [*self._unfinished.get(study_id, ()), *range(len(seen), len(ids))]
        seen.extend(self._replay_result._trials[trial_id] for trial_id in ids[len(seen) :])
        for number in unfinished:
            seen[number] = self._replay_result._trials[ids[number]]
        self._unfinished[study_id] = [number for number in unfinished if not seen[number].state.is_finished()]
        return seen


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
