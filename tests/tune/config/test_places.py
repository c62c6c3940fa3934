"""tune.config.places: every place in the settings of a sweep is absolute, in the forms that users write."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError
from tune.config.places import database_file, database_url, moved_into
from tune.config.sweep_config import (
    SweepConfig,
    as_override,
    load_sweep_config,
    parse_sweep,
    run_with_absolute_places,
    with_absolute_overrides,
)

SEARCH = {"encoder.width": [32, 64]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which paths are relative; its name has characters that URLs escape."""
    folder = tmp_path / "a b?c#d%20é{e}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def placed(here: Path, search: object = SEARCH, **sections: object) -> SweepConfig:
    config = parse_sweep({"search": search, **sections}, "a.yaml")
    found = config.with_absolute_places(Path("out", "toy"))
    assert found.with_absolute_places(Path("elsewhere")) == found
    assert parse_sweep(found.as_dict(), "sweep.yaml") == found
    return found


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("sqlite:///study.db", "{here}/out/toy/study.db"),
        ("sqlite:///./deep/study.db", "{here}/out/toy/deep/study.db"),
        ("sqlite:///../studies.db", "{here}/out/studies.db"),
        ("sqlite+pysqlite:///study.db?timeout=30", "{here}/out/toy/study.db"),
        ("sqlite:///~/study.db", "{home}/study.db"),
        ("sqlite:///file:study.db?uri=true", "{here}/out/toy/study.db"),
        ("sqlite:///file:a%2520b.db?uri=true&mode=rwc", "{here}/out/toy/a b.db"),
        ("sqlite:///file:///{home}/study.db?uri=true", "{home}/study.db"),
        ("sqlite:////absolute/study.db", "/absolute/study.db"),
    ],
)
def test_sqlite_opens_the_absolute_file_in_every_form(here: Path, written: str, file: str) -> None:
    home = here.parent / "home"
    expected = Path(file.format(here=here, home=home))
    storage = placed(here, sweep={"storage": written.format(home=str(home).lstrip("/"))}).sweep.storage
    assert storage is not None and database_file(storage) == expected
    assert ("timeout=30" in storage, "uri=true" in storage) == ("timeout" in written, "uri" in written)
    if expected.is_relative_to(here.parent):
        expected.parent.mkdir(parents=True, exist_ok=True)
        with sqlalchemy.create_engine(storage).begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (x INTEGER)"))
        assert sqlite3.connect(expected).execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]


@pytest.mark.parametrize("url", ["postgresql://user@host/db", "mysql://host/db", "env:STUDY_URL"])
def test_another_database_is_kept_as_it_is_written(here: Path, url: str) -> None:
    assert placed(here, sweep={"storage": url}).sweep.storage == url


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:x?mode=memory&cache=shared&uri=true",
        "sqlite+pysqlite:///file:/x?vfs=memdb&uri=true",
    ],
)
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.storage: .*in memory is lost with its process; name a file"):
        parse_sweep({"search": SEARCH, "sweep": {"storage": url}}, "a.yaml")


@pytest.mark.parametrize("url", ["study.db", "", "postgresql://h:port/db", "env:", "env:MY URL", "env:a-b"])
def test_what_is_no_database_and_no_variable_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.storage: .*(not the URL of a database|name of an environment var)"):
        parse_sweep({"search": SEARCH, "sweep": {"storage": url}}, "a.yaml")


def test_a_url_with_an_unescaped_password_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="in a password @ as %40") as caught:
        database_url("postgresql://u:first@second@host/db", None)
    assert "second" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        ("outputs", "results", "{here}/results"),
        ("outputs", "~/sweeps", "{home}/sweeps"),
        ("warm_start", "../other", "{here}/../other"),
        ("shared", "there", "{here}/there"),
        ("shared", "~/there", "{home}/there"),
        ("shared", "file://there/in", "{here}/there/in"),
        ("shared", "file:///there", "/there"),
        ("shared", "s3://bucket/there", "s3://bucket/there"),
        ("shared", "memory://there", "memory://there"),
        ("shared", "env:SHARED", "env:SHARED"),
    ],
)
def test_folders_are_relative_to_the_working_directory(here: Path, name: str, written: str, expected: str) -> None:
    found = getattr(placed(here, sweep={name: written}).sweep, name)
    assert found == expected.format(here=here, home=here.parent / "home")


def test_paths_of_a_run_are_absolute_in_settings_search_conditions_and_enqueued_settings(here: Path) -> None:
    choices = ["train", "mine.txt", ["Good morning.", "mine.txt"]]
    search = {
        "data.sentences": choices,
        "encoder.width": {"choices": [32, 64], "when": [{"data.sentences": ["mine.txt"]}]},
    }
    data = {"sentences": "mine.txt", "val_sentences": "~/held out.txt", "people": "people"}
    config = placed(
        here, search, data=data, models={"source": "models"}, sweep={"enqueue": [{"data.sentences": "mine.txt"}]}
    )
    mine = str(here / "mine.txt")
    assert config.run.data.sentences == mine
    assert config.run.data.val_sentences == str(here.parent / "home" / "held out.txt")
    assert config.run.models.source == str(here / "models")
    assert config.run.data.people == str(here / "people")
    assert run_with_absolute_places(config.run.model_copy()) == config.run
    space = config.search.as_dict()
    assert space["data.sentences"] == ["train", mine, ["Good morning.", "mine.txt"]]
    assert str(space["encoder.width"]).count(mine) == 1
    assert config.sweep.enqueue == ({"data.sentences": mine},)
    config.search.as_stored({"data.sentences": mine}, "enqueue")


def test_names_that_are_no_paths_are_kept(here: Path) -> None:
    config = placed(here, data={"sentences": ["mine.txt", "A sentence."], "val_sentences": "validation"})
    assert config.run.data.sentences == ("mine.txt", "A sentence.")
    assert (config.run.data.val_sentences, config.run.models.source) == ("validation", "auto")
    assert run_with_absolute_places(RunConfig()) == RunConfig()


def test_overrides_of_a_resumed_sweep_are_absolute_unless_the_sweep_names_them_so(here: Path) -> None:
    # As sweeps were saved that kept relative paths.
    old = parse_sweep({"search": {"data.sentences": ["train", "old.txt"]}, "sweep": {"shared": "there"}}, "sweep.yaml")
    given = ["sweep.trials=9", "sweep.shared=there", "data.val_sentences=new.txt", "sweep.warm_start=a b"]
    given += ["sweep.enqueue=[{data.sentences: old.txt}, {data.sentences: new.txt}]", "sweep.storage=sqlite:///x.db"]
    found = with_absolute_overrides(given, here / "out" / "toy", old)
    assert found[:2] == given[:2]
    assert found[2:4] == [
        as_override("data.val_sentences", str(here / "new.txt")),
        as_override("sweep.warm_start", str(here / "a b")),
    ]
    enqueued = [{"data.sentences": "old.txt"}, {"data.sentences": str(here / "new.txt")}]
    assert found[4] == as_override("sweep.enqueue", enqueued)
    file = here / "a.yaml"
    file.write_text("search: {encoder.width: [32, 64]}\n")
    storage = load_sweep_config(file, [found[5]]).sweep.storage
    assert storage is not None and database_file(storage) == here / "out" / "toy" / "x.db"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("/outputs/old/study.db", "/new/place/study.db"),
        ("/outputs/old/deep/study.db", "/new/place/deep/study.db"),
        ("/outputs/studies.db", None),
        ("/elsewhere/old/study.db", None),
    ],
)
def test_a_file_in_the_folder_of_a_sweep_moves_with_it(file: str, expected: str | None) -> None:
    found = moved_into(Path("/new/place"), Path(file), Path("/outputs"))
    assert found == (None if expected is None else Path(expected))
