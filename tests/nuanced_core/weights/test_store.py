"""nuanced_core.weights.store: an entry is complete or absent, even after errors and killed processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nuanced_core.errors import DiskError
from nuanced_core.hashing import hash_bytes, hash_file
from nuanced_core.weights import store
from nuanced_core.weights.store import cache_dir, cached

BUILD = """
import sys, time
from pathlib import Path
from nuanced_core.weights import store
def fill(folder):
    (folder / "a.bin").write_bytes(b"half")
    Path(sys.argv[1]).touch()
    time.sleep(float(sys.argv[2]))
    (folder / "a.bin").write_bytes(b"whole")
    return "noted"
print(store.build("kokoro", "hub", fill).sha256["a.bin"])
"""


def fill(folder: Path) -> str:
    (folder / "a.bin").write_bytes(b"whole")
    return "noted"


def start_build(started: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(started), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(started: Path) -> None:
    end = time.monotonic() + 20
    while not started.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert started.exists()


def leftovers(cache: Path) -> list[Path]:
    return list((cache / "weights").glob(".*"))


def test_the_environment_sets_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("NUANCED_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "nuanced-speech"


def test_a_built_entry_is_found_with_its_hashes(cache, logged):
    built = store.build("kokoro", "hub", fill)
    assert built == store.find("kokoro", "hub")
    assert built.sha256 == {"a.bin": hash_bytes(b"whole")}
    assert (built.note, logged(), leftovers(cache)) == ("noted", [], [])
    (file,) = cached()
    assert (file.name, file.bytes, file.source) == ("kokoro/a.bin", 5, "hub")


def test_a_failed_build_leaves_no_files(cache):
    def broken(folder: Path) -> str:
        (folder / "a.bin").write_bytes(b"half")
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        store.build("kokoro", "hub", broken)
    assert store.find("kokoro", "hub") is None
    assert leftovers(cache) == []


def test_the_files_of_a_killed_build_are_removed_by_the_next_build(cache, tmp_path):
    process = start_build(tmp_path / "started", 60)
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(leftovers(cache)) == 1
    assert store.find("kokoro", "hub") is None
    assert cached() == []
    store.build("kokoro", "hub", fill)
    assert leftovers(cache) == []


def test_the_files_of_a_running_build_are_kept_for_a_day(cache, tmp_path):
    process = start_build(tmp_path / "started", 60)
    try:
        wait_for(tmp_path / "started")
        store.build("voices", "hub", fill)
        (temporary,) = leftovers(cache)
        os.utime(temporary, (time.time() - 90_000,) * 2)
        store.build("voices", "packages", fill)
        assert leftovers(cache) == []
    finally:
        process.kill()
        process.wait()


def test_two_processes_can_build_the_same_entry(cache, tmp_path, logged):
    processes = [start_build(tmp_path / f"started{i}", 0.5) for i in range(2)]
    hashes = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert hashes == {hash_bytes(b"whole")}
    assert store.find("kokoro", "hub") is not None
    assert (logged(), leftovers(cache)) == ([], [])


def test_the_slower_of_two_builds_returns_the_entry_of_the_faster(cache):
    def slower_fill(folder: Path) -> str:
        store.build("kokoro", "hub", fill)
        (folder / "a.bin").write_bytes(b"slower")
        return "slower"

    assert store.build("kokoro", "hub", slower_fill).note == "noted"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_is_a_disk_error(cache, number):
    def full(folder: Path) -> str:
        raise OSError(number, "no")

    with pytest.raises(DiskError, match="NUANCED_CACHE") as caught:
        store.build("kokoro", "hub", full)
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


def test_a_cache_folder_that_cannot_be_created_is_a_disk_error(monkeypatch, cache):
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskError, match=str(cache)):
        store.build("kokoro", "hub", fill)


def damage_file(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"wholf")


def remove_file(folder: Path) -> None:
    (folder / "a.bin").unlink()


def remove_record(folder: Path) -> None:
    (folder / "entry.json").unlink()


def cut_record(folder: Path) -> None:
    (folder / "entry.json").write_text('{"format": 1, ')


def change_format(folder: Path) -> None:
    record = json.loads((folder / "entry.json").read_text())
    (folder / "entry.json").write_text(json.dumps(record | {"format": 0}))


@pytest.mark.parametrize("damage", [damage_file, remove_file, remove_record, cut_record, change_format])
def test_a_damaged_entry_is_discarded_with_a_warning(cache, monkeypatch, logged, damage):
    entry = store.build("kokoro", "hub", fill)
    monkeypatch.setattr(store, "_verified", set())  # as a new process
    damage(entry.folder)
    assert store.find("kokoro", "hub") is None
    (message,) = logged()
    assert message.startswith("WARNING cache entry kokoro/hub ") and message.endswith(": discarded")
    assert not entry.folder.exists() and leftovers(cache) == []


def test_an_entry_is_hashed_once_per_process(cache, monkeypatch):
    store.build("kokoro", "hub", fill)
    monkeypatch.setattr(store, "_verified", set())  # as a new process
    hashed: list[Path] = []

    def counting(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr(store, "hash_file", counting)
    for _ in range(3):
        store.find("kokoro", "hub")
    assert len(hashed) == 1
