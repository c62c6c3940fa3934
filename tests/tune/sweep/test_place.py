"""tune.sweep.place: where a sweep may begin, what an existing one accepts, and who holds its lock."""

import os
import threading
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.errors import ConfigError
from nuanced_core.training.run import LAST
from tune.config.sweep_config import SETTINGS_FILE, SweepConfig, parse_sweep
from tune.sweep import lock
from tune.sweep.lock import LOCK_FILE, DriverLock
from tune.sweep.place import SweepPlace

MODELS = {"kokoro": "a" * 64}


def config_in(outputs: str, *overrides: str) -> SweepConfig:
    data = {"search": {"encoder.width": [32, 64]}, "sweep": {"outputs": outputs, "trials": 1}}
    return parse_sweep(data, "a.yaml", overrides)


def begun(outputs: Path) -> Path:
    """The folder of a sweep that has begun, and whose driver has left."""
    config = config_in(str(outputs))
    with SweepPlace.new(config.sweep, "a") as place:
        place.open(config, MODELS)
        return place.folder


def test_a_new_place_writes_nothing_until_it_is_opened_and_is_locked_then(tmp_path: Path) -> None:
    config = config_in(str(tmp_path))
    with SweepPlace.new(config.sweep, "a") as place:
        assert place.saved is None and not any(tmp_path.iterdir())
        place.open(config, MODELS)
        assert place.saved == config
        assert read_yaml(place.folder / SETTINGS_FILE)["record"]["models"] == MODELS
        with pytest.raises(ConfigError, match="is at work here already"):
            SweepPlace.existing(place.folder)
    with SweepPlace.existing(place.folder) as again:
        assert again.saved == config


def test_outputs_in_the_home_folder_are_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with SweepPlace.new(config_in("~/sweeps").sweep, "a") as place:
        assert place.folder == tmp_path / "sweeps" / "a"
    shared = config_in(str(tmp_path), "sweep.shared=~/shared").sweep
    with SweepPlace.new(shared, "a") as place:
        assert place.is_shared and place.storage.location == str(tmp_path / "shared" / "a")


def test_a_folder_in_shared_storage_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "shared" / "a").mkdir(parents=True)
    shared = config_in(str(tmp_path), f"sweep.shared=file://{tmp_path}/shared").sweep
    with pytest.raises(ConfigError, match=r"^sweep\.shared: .*/shared/a: exists already; give another --name"):
        SweepPlace.new(shared, "a")


def test_other_model_files_than_those_of_the_beginning_are_refused(tmp_path: Path) -> None:
    with SweepPlace.existing(begun(tmp_path)) as place:
        config = place.settings_with([])
        place.open(config, MODELS)
        place.open(config, {"whisper": "b" * 64})  # a file that was not recorded may differ
        with pytest.raises(ConfigError, match="kokoro: not the file that the sweep began with"):
            place.open(config, {"kokoro": "b" * 64})


@pytest.mark.parametrize("record", [3, {"models": "none"}])
def test_a_record_that_somebody_edited_is_refused_in_one_line(tmp_path: Path, record: object) -> None:
    folder = begun(tmp_path)
    write_yaml(folder / SETTINGS_FILE, {**read_yaml(folder / SETTINGS_FILE), "record": record})
    with (
        SweepPlace.existing(folder) as place,
        pytest.raises(ConfigError, match=r"sweep\.yaml: record: .* restore it, or remove it"),
    ):
        place.open(place.settings_with([]), MODELS)


def test_changed_settings_are_saved_with_the_record_of_the_beginning(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    before = read_yaml(folder / SETTINGS_FILE)
    with SweepPlace.existing(folder) as place:
        place.save(place.settings_with(["sweep.trials=5"]))
    after = read_yaml(folder / SETTINGS_FILE)
    assert (after["sweep"]["trials"], after["record"]) == (5, before["record"])


def test_the_lock_is_released_if_the_settings_cannot_be_read(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    text = (folder / SETTINGS_FILE).read_text()
    (folder / SETTINGS_FILE).write_text("search: 3\n")
    with pytest.raises(ConfigError, match="search"):
        SweepPlace.existing(folder)
    (folder / SETTINGS_FILE).write_text(text)
    SweepPlace.existing(folder).__exit__(None, None, None)


def opened(place: SweepPlace, *overrides: str) -> optuna.Study:
    """The study of an existing sweep with overrides, which are saved then as a driver does."""
    config = place.settings_with(overrides)
    study = place.open_study(config)
    place.save(config)
    return study


def with_settings(folder: Path, **settings: object) -> None:
    """Rewrite ``sweep.yaml`` as an older version, or somebody, wrote it."""
    data = read_yaml(folder / SETTINGS_FILE)
    write_yaml(folder / SETTINGS_FILE, {**data, "sweep": {**data["sweep"], **settings}})


def test_a_new_sweep_refuses_a_password_also_from_the_settings_of_an_older_sweep(tmp_path: Path) -> None:
    data = {"search": {"encoder.width": [32, 64]}, "record": {}, "sweep": {"shared": "s3://key:s3cr3t@bucket/x"}}
    with pytest.raises(ConfigError, match=r"sweep\.shared: s3://key:\*\*\*@bucket/x: holds a password.* to env:NAME"):
        SweepPlace.new(parse_sweep(data, "a.yaml").sweep, "a")


def test_an_older_sweep_with_a_password_resumes_and_loses_it_for_an_environment_variable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path)
    with_settings(folder, storage="postgresql://me:s3cr3t@h/db")
    with SweepPlace.existing(folder) as place:
        assert place.settings_with(["sweep.trials=5"]).sweep.storage == "postgresql://me:s3cr3t@h/db"
        assert "holds a password; to remove it" in caplog.text and "--set sweep.storage=env:NAME" in caplog.text
        caplog.clear()
        monkeypatch.setenv("A_URL", "postgresql://me:s3cr3t@h/db")
        place.save(place.settings_with(["sweep.storage=env:A_URL"]))
        assert not caplog.records and "s3cr3t" not in caplog.text
    assert "s3cr3t" not in (folder / SETTINGS_FILE).read_text() and "env:A_URL" in (folder / SETTINGS_FILE).read_text()


def test_a_database_that_moved_is_named_anew_and_no_other_study_is_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = begun(tmp_path), tmp_path / "before.db"
    with_settings(folder, storage=f"sqlite:///{before}")
    with SweepPlace.existing(folder) as place:
        study = opened(place)  # a sweep that never started a trial may create it
        study.ask()
        study.ask()
        (folder / "trials" / "1").mkdir(parents=True)
        monkeypatch.setenv("A_URL", f"sqlite:///{before}")
        assert len(opened(place, "sweep.storage=env:A_URL").trials) == 2
    after = before.rename(tmp_path / "after.db")
    with SweepPlace.existing(folder) as place:
        with pytest.raises(ConfigError, match=r"env:A_URL: .*before\.db: does not exist, but .* of 1 trials"):
            opened(place)
        assert len(opened(place, f"sweep.storage=sqlite:///{after}").trials) == 2
        optuna.create_study(storage=f"sqlite:///{tmp_path}/other.db", study_name="a").ask()
        with pytest.raises(ConfigError, match=r"its study 'a' has 1 trials, but .* began trial 1: it is another study"):
            opened(place, f"sweep.storage=sqlite:///{tmp_path}/other.db")
        with pytest.raises(ConfigError, match=r"sweep\.storage: was sqlite.*, would be None"):
            opened(place, "sweep.storage=null")
    assert read_yaml(folder / SETTINGS_FILE)["sweep"]["storage"] == f"sqlite:///{after}"


def test_shared_storage_that_moved_is_named_anew_and_missed_if_a_trial_needs_it(tmp_path: Path) -> None:
    folder, before = begun(tmp_path), tmp_path / "before"
    with_settings(folder, shared=str(before))
    (before / "a" / "trials" / "0").mkdir(parents=True)
    with SweepPlace.existing(folder) as place:
        # Trials have folders in shared storage alone.
        with pytest.raises(ConfigError, match=r"study\.journal: does not exist, but .* of 1 trials"):
            opened(place)
        (before / "a" / "trials" / "0").rmdir()
        opened(place).ask().report(1.0, step=1)
        before.rename(tmp_path / "after")
        with pytest.raises(
            ConfigError, match=rf"sweep\.shared: {before}/a: does not exist, but trial 0 is to continue"
        ):
            opened(place)
    with SweepPlace.existing(folder) as place:
        with pytest.raises(
            ConfigError, match=rf"{tmp_path}/absent/a: does not exist, so unfinished .* copy {before} th"
        ):
            opened(place, f"sweep.shared={tmp_path}/absent")
        assert len(opened(place, f"sweep.shared={tmp_path}/after").trials) == 1
        assert place.storage.location == f"{tmp_path}/after/a"


def test_a_sweep_that_is_resumed_from_within_its_folder_keeps_its_place_in_shared_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(str(tmp_path / "outputs"), f"sweep.shared={tmp_path / 'shared'}")
    with SweepPlace.new(config.sweep, "a") as place:
        place.open(config, MODELS)
    monkeypatch.chdir(place.folder)
    with SweepPlace.existing(Path()) as again:
        assert again.storage.location == str(tmp_path / "shared" / "a")


def test_settings_that_a_checkpoint_would_not_fit_are_refused_while_a_trial_has_one(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with SweepPlace.existing(folder) as place:
        study = opened(place)
        study.ask()
        opened(place, "train.epochs=7")  # the trial has not begun
        checkpoint = place.trials_folder / "0" / LAST
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        opened(place, "train.epochs=7", "show.clips=0", "models.source=hub", "sweep.trials=5")
        with pytest.raises(ConfigError, match=r"train\.epochs: was 7, would be 8: trial 0 is unfinished .* --trials 1"):
            opened(place, "train.epochs=8")
        study.tell(0, state=TrialState.FAIL)
        opened(place, "train.epochs=8")


def test_a_study_in_a_journal_keeps_its_name(tmp_path: Path) -> None:
    message = r"sweep\.study_name: was None, would be other: .*; leave it as it was"
    with SweepPlace.existing(begun(tmp_path)) as place, pytest.raises(ConfigError, match=message):
        place.settings_with(["sweep.study_name=other"])


def test_people_that_trials_are_compared_by_stay_the_same(tmp_path: Path) -> None:
    people = ["data.people=/people", "objective.people=1", "features.speaker=campplus"]
    plain = config_in(str(tmp_path), "data.people=/people")
    config_in(str(tmp_path), "data.people=/other").check_can_continue(plain)
    judged = config_in(str(tmp_path), *people)
    for change in ("data.people=/other", "data.people_seconds=3", "data.people_recordings=2"):
        with pytest.raises(ConfigError, match=f"{change.partition('=')[0]}: was .*could not be compared"):
            config_in(str(tmp_path), *people, change).check_can_continue(judged)


def test_a_driver_s_heartbeat_does_not_wait_for_its_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with closing(DriverLock(tmp_path)):
        file = tmp_path / LOCK_FILE
        os.utime(file, (0, 0))
        until = time.monotonic() + 60
        while file.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0


@pytest.mark.parametrize("clock", [-86_400, 0, 86_400])  # of the other machine, in seconds after this one's
def test_a_driver_on_another_machine_is_alive_while_its_heartbeat_goes_on_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    monkeypatch.setattr(lock, "DEAD_AFTER", 0.5)
    monkeypatch.setattr(lock, "_LOOK", 0.01)
    file, gone = tmp_path / LOCK_FILE, threading.Event()
    file.write_text('{"host": "elsewhere", "pid": 7}')

    def beat() -> None:
        while not gone.wait(0.05):
            os.utime(file, (time.time() + clock, time.time() + clock))

    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(ConfigError, match="process 7 on elsewhere is at work here already"):
            DriverLock(tmp_path)
    finally:
        gone.set()
        other.join()
    with closing(DriverLock(tmp_path)):  # nobody's heartbeat goes on
        assert str(os.getpid()) in file.read_text()
