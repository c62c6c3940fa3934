"""tune.search.study: creating, opening and finding the study of a sweep."""

import shutil
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest

from nuanced_core.config.yaml_files import write_yaml
from nuanced_core.errors import ConfigError
from tests.tune.search.ledgers import ledger
from tune.config.sweep_config import SETTINGS_FILE
from tune.config.sweep_settings import SweepSettings
from tune.search.study import check_new_study, open_study, read_storage, read_study


def in_database(folder: Path, study_name: str | None = None) -> SweepSettings:
    return SweepSettings(storage=f"sqlite:///{folder}/studies.db", study_name=study_name)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a sweep"):
        open_study(tmp_path, SweepSettings())
    assert not list(tmp_path.iterdir())


def test_the_study_of_a_renamed_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    ledger(tmp_path / "before").ask()
    (tmp_path / "before").rename(tmp_path / "after")
    assert len(read_study(tmp_path / "after").trials) == 1
    assert [study.study_name for study in read_storage(tmp_path / "after").get_all_studies()] == ["before"]


def test_a_study_is_read_from_the_database_that_the_settings_file_names(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    settings = in_database(tmp_path)
    write_yaml(
        folder / SETTINGS_FILE,
        {"search": {"encoder.width": [64, 128]}, "sweep": settings.model_dump(mode="json"), "record": {}},
    )
    with pytest.raises(ConfigError, match="holds no study of this sweep"):
        read_study(folder)
    study = open_study(folder, settings, create=True)
    study.ask()
    assert (read_study(folder).study_name, len(read_study(folder).trials)) == ("sweep", 1)
    assert len(read_storage(folder).get_all_studies()) == 1
    assert [file.name for file in folder.iterdir()] == [SETTINGS_FILE]


def test_a_study_name_that_the_database_holds_is_refused_for_a_new_sweep(tmp_path: Path) -> None:
    check_new_study(tmp_path / "sweep", SweepSettings())  # a journal holds one study
    check_new_study(tmp_path / "sweep", in_database(tmp_path))
    open_study(tmp_path / "sweep", in_database(tmp_path), create=True)
    with pytest.raises(ConfigError, match=r"holds a study 'sweep' already; take another sweep\.study_name"):
        check_new_study(tmp_path / "sweep", in_database(tmp_path))
    with pytest.raises(ConfigError, match="holds a study 'sweep' already"):
        check_new_study(tmp_path / "other", in_database(tmp_path, "sweep"))
    check_new_study(tmp_path / "other", in_database(tmp_path))


def test_a_database_that_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    settings = SweepSettings(storage=f"sqlite:///{tmp_path}/missing/studies.db")
    with pytest.raises(ConfigError, match=r"sweep\.storage: .*cannot be opened: ") as caught:
        open_study(tmp_path / "sweep", settings, create=True)
    assert "\n" not in str(caught.value)


def test_a_study_minimises_each_objective(tmp_path: Path) -> None:
    settings = SweepSettings(objectives=("val/stft", "val/style"), pruner="none")
    study = open_study(tmp_path, settings, create=True)
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE] * 2
    assert study.user_attrs["objectives"] == ["val/stft", "val/style"]


def test_an_sqlite_database_in_the_home_folder_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = SweepSettings(storage="sqlite:///~/studies.db")
    open_study(tmp_path / "a", settings, create=True)
    assert (tmp_path / "studies.db").is_file()


def trials_in(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / "trials" / str(number)).mkdir(parents=True)


def settings_in(folder: Path, settings: SweepSettings) -> None:
    data = {"search": {"encoder.width": [64, 128]}, "sweep": settings.model_dump(mode="json"), "record": {}}
    write_yaml(folder / SETTINGS_FILE, data)


@pytest.mark.parametrize("storage", [None, "sqlite:///{0}/study.db", "sqlite:///{0}/elsewhere/study.db"])
@pytest.mark.parametrize("create", [True, False])
def test_a_study_that_is_gone_although_trials_have_folders_is_refused(
    tmp_path: Path, storage: str | None, create: bool
) -> None:
    folder = tmp_path / "sweep"
    trials_in(folder, 0, 1, 10)
    settings = SweepSettings(storage=storage and storage.format(folder))
    settings_in(folder, settings)
    for call in (lambda: open_study(folder, settings, create=create), lambda: read_storage(folder)):
        with pytest.raises(
            ConfigError, match=r"study\.(db|journal): does not exist, but .*sweep has .* of 3 trials; "
        ) as e:
            call()
        assert "\n" not in str(e.value) and f"move {folder}/trials away" in str(e.value)
    assert sorted(path.name for path in folder.iterdir()) == [SETTINGS_FILE, "trials"]  # nothing was created


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("kind", ["journal", "database"])
def test_an_empty_study_is_refused_although_it_has_the_right_name(tmp_path: Path, kind: str, create: bool) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    settings = SweepSettings() if kind == "journal" else in_database(tmp_path)
    study = open_study(folder, settings, create=True)
    study.enqueue_trial({"encoder.width": 64})
    assert len(open_study(folder, settings, create=create).trials) == 1  # a sweep that never started a trial
    trials_in(folder, 0)
    with pytest.raises(ConfigError, match=r"holds no trials, but .* has the folders of 1 trials"):
        open_study(folder, settings, create=create)
    study.ask()
    assert len(open_study(folder, settings, create=create).trials) == 1


def test_a_database_without_the_study_of_trials_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    open_study(tmp_path / "other", in_database(tmp_path), create=True).ask()
    trials_in(tmp_path / "sweep", 0)
    with pytest.raises(
        ConfigError, match=r"studies\.db: holds no study 'sweep', but .* of 1 trials; .*sqlite:////PATH"
    ):
        open_study(tmp_path / "sweep", in_database(tmp_path), create=True)
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/studies.db") == ["other"]


@pytest.mark.parametrize("written", ["sqlite:///study.db", "sqlite:///deep/study.db"])
def test_a_new_database_lies_in_the_folder_of_its_sweep(
    tmp_path: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.db").touch()  # another one in the working directory
    folder, settings = Path("outputs", "sweep"), SweepSettings(storage=written)
    check_new_study(folder, settings)
    assert not folder.exists()
    folder.mkdir(parents=True)
    open_study(folder, settings, create=True).ask()
    assert (folder / written.removeprefix("sqlite:///")).stat().st_size > 0 and not (
        tmp_path / "study.db"
    ).stat().st_size


def test_an_old_relative_database_is_looked_for_in_the_folder_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = tmp_path / "outputs" / "sweep", SweepSettings(storage="sqlite:///study.db")
    trials_in(folder, 0)
    (tmp_path / "before").mkdir()
    monkeypatch.chdir(tmp_path / "before")
    storage = f"sqlite:///{tmp_path}/before/study.db"
    optuna.create_study(storage=storage, study_name="sweep").ask()
    assert len(open_study(folder, settings, create=True).trials) == 1
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{folder}/study\.db: does not exist, but .* of 1 trials"):
        open_study(folder, settings, create=True)
    (tmp_path / "before" / "study.db").rename(folder / "study.db")
    assert len(open_study(folder, settings, create=True).trials) == 1


def test_a_database_in_the_folder_of_a_sweep_is_found_where_the_folder_is_moved_or_copied(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    folder.mkdir(parents=True)
    settings = SweepSettings(storage=f"sqlite:///{folder}/study.db", outputs=str(tmp_path / "outputs"))
    open_study(folder, settings, create=True).ask()
    settings_in(folder, settings)
    trials_in(folder, 0)
    copied = tmp_path / "elsewhere" / "copied"
    shutil.copytree(folder, copied)
    open_study(copied, settings, create=True).ask()
    assert (len(read_study(copied).trials), len(read_study(folder).trials)) == (2, 1)
    moved = folder.rename(tmp_path / "outputs" / "moved")
    assert len(open_study(moved, settings, create=True).trials) == 1


def test_a_database_in_a_folder_with_an_odd_name_is_opened_there(tmp_path: Path) -> None:
    folder = tmp_path / "a b?c#100%25{e}é" / "sweep"
    folder.mkdir(parents=True)
    for storage in ("sqlite:///study.db", "sqlite:///file:study.db?uri=true"):
        open_study(folder, SweepSettings(storage=storage, study_name=storage), create=True)
    assert [path.name for path in folder.iterdir()] == ["study.db"]


def test_the_folder_of_a_new_database_must_exist(tmp_path: Path) -> None:
    settings = SweepSettings(storage=f"sqlite:///{tmp_path}/missing/studies.db")
    with pytest.raises(
        ConfigError, match=rf"cannot be created: there is no folder {tmp_path}/missing; create it first"
    ):
        check_new_study(tmp_path / "sweep", settings)


HOSTILE = "s3cr3t/{0}with:all@of #it?"


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("dialect", ["postgresql+psycopg", "postgresql", "mysql", "nosuch", "sqlite"])
def test_no_error_of_a_database_quotes_its_password(
    tmp_path: Path, dialect: str, escaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_URL", f"{dialect}://me:{quote(HOSTILE, safe='') if escaped else HOSTILE}@127.0.0.1:1/db")
    for check in (check_new_study, open_study):
        with pytest.raises(ConfigError, match=r"^sweep\.storage: env:A_URL: ") as caught:
            check(tmp_path, SweepSettings(storage="env:A_URL"))
        for part in ("s3cr3t", "with:all", "of #it", quote(HOSTILE, safe="")):
            assert part not in str(caught.value)


def test_a_database_is_named_by_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SweepSettings(storage="env:A_URL")
    monkeypatch.delenv("A_URL", raising=False)
    with pytest.raises(ConfigError, match=r"sweep\.storage: env:A_URL: the environment variable A_URL is not set"):
        check_new_study(tmp_path / "sweep", settings)
    monkeypatch.setenv("A_URL", f"sqlite:///{tmp_path}/studies.db")
    check_new_study(tmp_path / "sweep", settings)
    open_study(tmp_path / "sweep", settings, create=True).ask()
    assert len(open_study(tmp_path / "sweep", settings).trials) == 1
    with pytest.raises(ConfigError, match=r"env:A_URL: .*studies\.db: holds a study 'sweep' already"):
        check_new_study(tmp_path / "sweep", settings)
    monkeypatch.setenv("A_URL", "sqlite://")
    with pytest.raises(ConfigError, match=r"sweep\.storage: env:A_URL: a database in memory is lost"):
        open_study(tmp_path / "sweep", settings)
