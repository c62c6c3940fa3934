"""tune.search.study: creating, opening and finding the study of a sweep."""

from pathlib import Path

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
        open_study(tmp_path, settings, create=True)
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
