"""tune.cluster.shared_storage: copies to storage and back, changed files alone, and errors of the storage."""

import errno
import logging
import os
import pickle
from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError, DiskError
from tune.cluster.shared_storage import EndedTrialCopier, SharedFolder, scratch_folder


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "local"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.safetensors").write_bytes(b"weights")
    (folder / "config.yaml").write_text("a: 1\n")
    (folder / "half.part").write_text("not yet")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("location", ["{0}/there", "file://{0}/there", "memory://there"])
def test_a_pushed_folder_replaces_another_one_when_it_is_pulled(tmp_path: Path, local: Path, location: str) -> None:
    shared = SharedFolder(location.format(tmp_path)).child("sweep", "trials", "0")
    assert not shared.exists()
    shared.push(local)
    assert shared.exists() and shared.exists("config.yaml") and not shared.exists("half.part")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stale").touch()
    SharedFolder(location.format(tmp_path)).child("sweep", "trials", "0").pull(elsewhere)
    assert files(elsewhere) == {"checkpoints/last.safetensors": b"weights", "config.yaml": b"a: 1\n"}
    shared.write("stop", "")
    assert shared.exists("stop") and shared.read("config.yaml") == "a: 1\n" and shared.read("nothing") is None
    shared.remove("stop", "nothing")
    assert not shared.exists("stop")


def test_only_changed_files_are_copied_again(tmp_path: Path, local: Path) -> None:
    shared = SharedFolder(str(tmp_path / "there"))
    shared.push(local)
    (tmp_path / "there" / "config.yaml").unlink()
    (local / "checkpoints" / "last.safetensors").write_bytes(b"newer weights")
    shared.push(local)
    assert files(tmp_path / "there") == {"checkpoints/last.safetensors": b"newer weights"}
    other = SharedFolder(str(tmp_path / "there"))
    other.pull(local)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "there").rglob("*")}
    other.push(local)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "there").rglob("*")}


def test_a_folder_that_does_not_exist_is_pulled_as_an_empty_one(tmp_path: Path) -> None:
    SharedFolder(str(tmp_path / "nothing")).pull(tmp_path / "local")
    assert (tmp_path / "local").is_dir() and not files(tmp_path / "local")


def test_a_full_disk_leaves_the_previous_version_of_a_file_whole(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedFolder(str(tmp_path / "there"))
    shared.push(local)
    (local / "config.yaml").write_text("a: 2\n")

    def full(source: str, target: str) -> None:
        Path(target).write_text("a:")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shared._files, "put_file", full)
    with pytest.raises(DiskError, match=r"there: config\.yaml cannot be written: OSError.*No space left"):
        shared.push(local)
    assert (tmp_path / "there" / "config.yaml").read_text() == "a: 1\n"
    monkeypatch.undo()
    shared.push(local)
    assert (tmp_path / "there" / "config.yaml").read_text() == "a: 2\n"


def test_a_url_that_no_installed_package_handles_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.shared: nosuch://bucket/folder: .*nosuch.*or take a path"):
        SharedFolder("nosuch://bucket/folder")


def test_missing_trials_are_copied_and_a_failure_is_logged(
    tmp_path: Path, local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = SharedFolder(str(tmp_path / "there"))
    shared.child("trials", "3").push(local)
    (tmp_path / "sweep" / "trials" / "5").mkdir(parents=True)
    (tmp_path / "sweep" / "trials" / "4.part").write_text("in the way")
    shared.child("trials", "4").push(local)
    shared.child("trials", "5").push(local)
    copier = EndedTrialCopier(shared, tmp_path / "sweep")
    copier.fetch_missing([3, 4, 5, 6])  # 5 is here already, and 6 has written nothing
    copier.close()
    assert not files(tmp_path / "sweep" / "trials" / "5") and not (tmp_path / "sweep" / "trials" / "6").exists()
    assert "config.yaml" in files(tmp_path / "sweep" / "trials" / "3")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("trial 4: its folder stays in shared storage: ")


def test_unreachable_storage_raises_disk_errors_and_changes_nothing_here(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedFolder(str(tmp_path / "there"))
    shared.push(local)

    class UnreachableError(Exception):
        """Not an OSError, like those of botocore."""

    def unreachable(*_: object, **__: object) -> None:
        raise UnreachableError("no route")

    for name in ("info", "read_text", "rm", "ls"):
        monkeypatch.setattr(shared._files, name, unreachable)
    with pytest.raises(DiskError, match=r"sweep\.shared: .*there: cannot be read: UnreachableError: no route"):
        shared.exists("stop")
    with pytest.raises(DiskError, match="cannot be read"):
        shared.pull(local)
    assert "config.yaml" in files(local)
    assert shared.read("config.yaml") is None and shared.names() == []
    shared.remove("config.yaml")


def test_a_relative_path_is_the_same_folder_in_another_working_directory(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = SharedFolder("there").child("a")
    monkeypatch.chdir("/")
    pickle.loads(pickle.dumps(shared)).push(local)
    assert (tmp_path / "there" / "a" / "config.yaml").is_file()


def test_trials_of_two_sweeps_have_different_scratch_folders() -> None:
    folders = {scratch_folder(location, number) for location in ("s3://a/b-1", "s3://a/b_1") for number in (1, 2)}
    assert len(folders) == 4


def test_a_folder_is_named_by_an_environment_variable(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHARED", raising=False)
    with pytest.raises(ConfigError, match=r"sweep\.shared: env:SHARED: the environment variable SHARED is not set"):
        SharedFolder("env:SHARED")
    for place in (f"{tmp_path}/there", f"file://{tmp_path}/there", "memory://env-there"):
        monkeypatch.setenv("SHARED", place)
        SharedFolder("env:SHARED").child("a").push(local)
        assert SharedFolder(f"{place}/a").read("config.yaml") == "a: 1\n"
    monkeypatch.setenv("SHARED", "there")
    with pytest.raises(ConfigError, match=r"sweep\.shared: env:SHARED: there: a relative path, .* make it absolute"):
        SharedFolder("env:SHARED")


def test_a_password_is_shown_nowhere_and_pickled_for_memory_alone(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARED", "memory://me:s3cr3t@vault")
    shared = SharedFolder("env:SHARED").child("a")
    shared.push(local)
    assert shared.location == "memory://me:***@vault/a"
    assert b"s3cr3t" not in pickle.dumps(shared) and b"s3cr3t" not in pickle.dumps(shared.child("b").parent)
    passed_on = pickle.loads(pickle.dumps(shared.in_memory()))
    assert type(passed_on) is SharedFolder and passed_on.read("config.yaml") == "a: 1\n"
    assert b"s3cr3t" not in pickle.dumps(passed_on)
    monkeypatch.setattr(shared._files, "info", lambda path: (_ for _ in ()).throw(OSError(f"no route to {path}")))
    with pytest.raises(DiskError, match=r"cannot be read: OSError: no route to .*me:\*\*\*@vault") as caught:
        shared.exists()
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://me:s3cr3t@127.0.0.1:1/x", "ftp://me:s3cr3t/a:b@c@127.0.0.1:1/x", "no://me:s3cr3t@h/x"]
)
def test_no_error_of_a_storage_quotes_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARED", url)
    with pytest.raises(ConfigError, match=r"^sweep\.shared: \w+://me:\*\*\*@") as caught:
        SharedFolder("env:SHARED")
    assert "s3cr3t" not in str(caught.value) and "a:b" not in str(caught.value)


def test_a_file_that_is_removed_while_its_folder_is_copied_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedFolder(str(tmp_path / "shared"))
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / name).write_text(name)
    shared.push(source)
    copy = type(shared._files).get_file

    def remove_others_first(self: object, path: str, *args: object, **options: object) -> None:
        if path.endswith("b"):
            shared.remove("a", "b")  # one that was copied, and the next
        copy(self, path, *args, **options)

    monkeypatch.setattr(type(shared._files), "get_file", remove_others_first)
    shared.pull(tmp_path / "local")
    assert [file.name for file in (tmp_path / "local").iterdir()] == ["c"]
