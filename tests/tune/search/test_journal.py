"""tune.search.journal: writes to the disk, a full disk, and repair after a crash."""

import resource
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nuanced_core.errors import DiskError
from tests.tune.search.ledgers import ledger, result, stored_trials
from tune.search.journal import STUDY_FILE, repair_journal


@pytest.mark.parametrize("room", range(0, 400, 40))
def test_a_line_that_does_not_fit_on_the_disk_is_not_written_in_part(tmp_path: Path, room: int) -> None:
    book = ledger(tmp_path)
    book.ask()
    size = (tmp_path / STUDY_FILE).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
    try:
        book.report(0, result(1, 1.0))
        book.end(0)
        assert isinstance(book.disk_error, DiskError) and book.ask() is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / STUDY_FILE).read_bytes().endswith(b"}\n")
    assert book.interrupt_all() == 1
    again = ledger(tmp_path)
    assert again.reopened == 1
    again.ask()
    assert again.report(0, result(1, 1.0)) and again.report(0, result(2, 0.5))
    again.end(0)
    assert stored_trials(tmp_path)[0].value == 0.5


@pytest.mark.parametrize("left", [b"\0" * 50, b'{"op_code": 5', b"\0\0\n\0\0", b'{"op_code"\n\0\0\n'])
def test_repair_removes_what_a_machine_that_lost_power_left(tmp_path: Path, left: bytes) -> None:
    book = ledger(tmp_path)
    book.ask()
    whole = (tmp_path / STUDY_FILE).read_bytes()
    (tmp_path / STUDY_FILE).write_bytes(whole + left)
    repair_journal(tmp_path)
    assert (tmp_path / STUDY_FILE).read_bytes() == whole
    assert ledger(tmp_path).reopened == 1


def test_the_journal_is_synced_at_intervals_and_only_after_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = ledger(tmp_path)
    book.tick()
    synced: list[int] = []
    monkeypatch.setattr("tune.search.journal.os.fsync", synced.append)
    book.ask()
    book.tick()
    assert not synced  # not after each line
    monkeypatch.setattr("tune.search.ledger._SYNC_INTERVAL", 0.0)
    book.tick()
    book.tick()
    assert len(synced) == 1  # not without a write
    book.report(0, result(1, 1.0))
    book.tick()
    assert len(synced) == 2


def test_repair_removes_the_incomplete_line_and_the_lock_of_a_killed_driver(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    path = tmp_path / STUDY_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 6, "trial_')
    (tmp_path / f"{STUDY_FILE}.lock").symlink_to(path)
    repair_journal(tmp_path)
    assert path.read_bytes() == whole
    again = ledger(tmp_path)
    assert again.reopened == 1 and again.ask() is not None


def test_repair_removes_the_renamed_lock_of_a_driver_that_was_killed_while_it_released_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = ledger(tmp_path)

    def killed(path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.unlink", killed)
        book.ask()
    assert [path.suffix for path in tmp_path.glob(f"{STUDY_FILE}.lock*")] == [".rename"]
    repair_journal(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STUDY_FILE]
    assert ledger(tmp_path).reopened == 1


def test_repair_leaves_a_complete_journal_and_a_folder_without_one_unchanged(tmp_path: Path) -> None:
    repair_journal(tmp_path)
    assert list(tmp_path.iterdir()) == []
    ledger(tmp_path).ask()
    complete = (tmp_path / STUDY_FILE).read_bytes()
    repair_journal(tmp_path)
    assert (tmp_path / STUDY_FILE).read_bytes() == complete


def test_a_journal_is_read_by_optuna_s_own_backend(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    asked = book.ask()
    assert asked is not None
    book.report(0, result(1, 1.0))
    book.end(0)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / STUDY_FILE)))
    (trial,) = optuna.load_study(study_name=tmp_path.name, storage=storage).trials
    assert (trial.value, trial.params) == (1.0, asked["params"])
