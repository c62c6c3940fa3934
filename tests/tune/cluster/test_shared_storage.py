"""tune.cluster.shared_storage: folders copied to storage and back, what is copied again, and what is refused."""

import errno
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


@pytest.mark.parametrize("place", ["{0}/there", "file://{0}/there", "memory://there"])
def test_what_is_pushed_can_be_pulled_elsewhere_and_replaces_what_is_there(
    tmp_path: Path, local: Path, place: str
) -> None:
    shared = SharedFolder(place.format(tmp_path)).child("sweep", "trials", "0")
    assert not shared.exists()
    shared.push(local)
    assert shared.exists() and shared.exists("config.yaml") and not shared.exists("half.part")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stale").touch()
    SharedFolder(place.format(tmp_path)).child("sweep", "trials", "0").pull(elsewhere)
    assert files(elsewhere) == {"checkpoints/last.safetensors": b"weights", "config.yaml": b"a: 1\n"}
    shared.write("stop", "")
    assert shared.exists("stop") and shared.read("config.yaml") == "a: 1\n" and shared.read("nothing") is None
    shared.remove("stop", "nothing")
    assert not shared.exists("stop")


def test_only_what_changed_is_copied_again(tmp_path: Path, local: Path) -> None:
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


def test_a_folder_that_is_not_there_yet_is_pulled_as_an_empty_one(tmp_path: Path) -> None:
    SharedFolder(str(tmp_path / "nothing")).pull(tmp_path / "local")
    assert (tmp_path / "local").is_dir() and not files(tmp_path / "local")


def test_a_full_disk_leaves_the_file_before_it_whole(
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


def test_a_url_that_nothing_here_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.shared: nosuch://bucket/folder: .*nosuch.*or take a path"):
        SharedFolder("nosuch://bucket/folder")


def test_copies_of_trials_arrive_before_the_end_and_a_failure_is_told(tmp_path: Path, local: Path) -> None:
    shared = SharedFolder(str(tmp_path / "there"))
    shared.child("trials", "3").push(local)
    said: list[str] = []
    (tmp_path / "sweep" / "trials" / "5").mkdir(parents=True)
    (tmp_path / "sweep" / "trials" / "4.part").write_text("in the way")
    shared.child("trials", "4").push(local)
    shared.child("trials", "5").push(local)
    copies = EndedTrialCopier(shared, tmp_path / "sweep", said.append)
    copies.fetch_missing([3, 4, 5, 6])  # 5 is here already, and 6 has left nothing
    copies.close()
    assert not files(tmp_path / "sweep" / "trials" / "5") and not (tmp_path / "sweep" / "trials" / "6").exists()
    assert "config.yaml" in files(tmp_path / "sweep" / "trials" / "3")
    assert len(said) == 1 and said[0].startswith("trial 4: its folder stays in shared storage: ")


def test_a_storage_that_does_not_answer_is_neither_empty_nor_a_traceback(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedFolder(str(tmp_path / "there"))
    shared.push(local)

    class UnreachableError(Exception):
        """As botocore's: no OSError."""

    def away(*_: object, **__: object) -> None:
        raise UnreachableError("no route")

    for name in ("info", "read_text", "rm", "ls"):
        monkeypatch.setattr(shared._files, name, away)
    with pytest.raises(DiskError, match=r"sweep\.shared: .*there: cannot be read: UnreachableError: no route"):
        shared.exists("stop")
    with pytest.raises(DiskError, match="cannot be read"):
        shared.pull(local)
    assert "config.yaml" in files(local)  # what is here stays
    assert shared.read("config.yaml") is None and shared.names() == []
    shared.remove("config.yaml")


def test_a_relative_path_is_the_same_folder_for_a_process_elsewhere(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = SharedFolder("there").child("a")
    monkeypatch.chdir("/")
    pickle.loads(pickle.dumps(shared)).push(local)
    assert (tmp_path / "there" / "a" / "config.yaml").is_file()


def test_trials_of_two_sweeps_do_not_work_in_the_same_folder() -> None:
    folders = {scratch_folder(place, number) for place in ("s3://a/b-1", "s3://a/b_1") for number in (1, 2)}
    assert len(folders) == 4
