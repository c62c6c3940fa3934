"""tune.search.journal: writes to the disk, a full disk, repair after a crash, and the trials of a study."""

import random
import resource
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nuanced_core.errors import DiskError
from tests.tune.search.ledgers import ledger, result, stored_trials
from tune.search.journal import STUDY_FILE, StudyJournal, StudyStorage, repair_journal


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


def test_the_trials_of_a_study_are_always_those_that_optuna_s_own_storage_reads(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file, draw = str(tmp_path / STUDY_FILE), random.Random(0)
    storage = StudyStorage(StudyJournal(file))
    studies = [optuna.create_study(storage=storage, study_name=name) for name in ("first", "second")]
    others = [
        optuna.load_study(storage=JournalStorage(JournalFileBackend(file)), study_name=s.study_name) for s in studies
    ]
    asked: list[tuple[optuna.Study, optuna.Trial]] = []
    state_sets = [
        None,
        (TrialState.WAITING,),
        (TrialState.RUNNING, TrialState.WAITING),
        (TrialState.PRUNED, TrialState.RUNNING),
    ]
    for _ in range(150):
        study = draw.choice(studies + others)  # another process writes to the same file
        action = draw.random()
        if action < 0.35:
            study.enqueue_trial({"x": draw.random()})
        elif action < 0.55 or not asked:
            asked.append((study, study.ask()))
        elif action < 0.7:
            draw.choice(asked)[1].suggest_float("x", 0, 1)
        else:
            study, trial = asked.pop(draw.randrange(len(asked)))
            is_complete = draw.random() < 0.5
            study.tell(trial, 1.0 if is_complete else None, state=None if is_complete else TrialState.PRUNED)
        for ours, own in zip(studies, others, strict=True):
            states = draw.choice(state_sets)
            assert ours.get_trials(deepcopy=draw.random() < 0.5, states=states) == own.get_trials(states=states)
    assert {trial.state for study in studies for trial in study.trials} == set(TrialState) - {TrialState.FAIL}
    with pytest.raises(KeyError):
        storage.get_all_trials(2)


def test_trials_that_a_caller_changes_or_drops_stay_in_the_storage(tmp_path: Path) -> None:
    study = optuna.create_study(storage=StudyStorage(StudyJournal(str(tmp_path / STUDY_FILE))))
    study.enqueue_trial({"x": 0.5})
    study.get_trials(deepcopy=False).clear()
    study.get_trials(deepcopy=True)[0].system_attrs.clear()
    assert study.trials[0].system_attrs == {"fixed_params": {"x": 0.5}}
