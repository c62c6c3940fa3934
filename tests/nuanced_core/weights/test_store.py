"""The cache: an entry is whole or absent, whatever happens while it is built."""

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


def start_build(sign: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(sign), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(sign: Path) -> None:
    end = time.monotonic() + 20
    while not sign.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert sign.exists()


def leftovers(cache: Path) -> list[Path]:
    return list((cache / "weights").glob(".*"))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("NUANCED_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "nuanced-speech"


def test_a_built_entry_is_found_with_its_hashes(cache, logged):
    built = store.build("kokoro", "hub", fill)
    assert built == store.find("kokoro", "hub")
    assert built.sha256 == {"a.bin": hash_bytes(b"whole")}
    assert (built.note, logged, leftovers(cache)) == ("noted", [], [])
    (file,) = cached()
    assert (file.name, file.bytes, file.source) == ("kokoro/a.bin", 5, "hub")


def test_a_failed_build_leaves_nothing(cache, logged):
    def broken(folder: Path) -> str:
        (folder / "a.bin").write_bytes(b"half")
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        store.build("kokoro", "hub", broken)
    assert store.find("kokoro", "hub") is None
    assert leftovers(cache) == []


def test_a_killed_build_leaves_no_entry_and_the_next_one_clears_up(cache, tmp_path, logged):
    process = start_build(tmp_path / "sign", 60)
    wait_for(tmp_path / "sign")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(leftovers(cache)) == 1
    assert store.find("kokoro", "hub") is None
    assert cached() == []
    store.build("kokoro", "hub", fill)
    assert leftovers(cache) == []


def test_a_build_of_a_living_process_is_left_alone_for_a_day(cache, tmp_path):
    process = start_build(tmp_path / "sign", 60)
    try:
        wait_for(tmp_path / "sign")
        store.build("voices", "hub", fill)
        (temporary,) = leftovers(cache)
        os.utime(temporary, (time.time() - 90_000,) * 2)
        store.build("voices", "packages", fill)
        assert leftovers(cache) == []
    finally:
        process.kill()
        process.wait()


def test_two_processes_that_build_the_same_both_get_it(cache, tmp_path, logged):
    processes = [start_build(tmp_path / f"sign{i}", 0.5) for i in range(2)]
    hashes = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert hashes == {hash_bytes(b"whole")}
    assert store.find("kokoro", "hub") is not None
    assert (logged, leftovers(cache)) == ([], [])


def test_the_slower_build_returns_the_faster_ones_entry(cache):
    def overtaken(folder: Path) -> str:
        store.build("kokoro", "hub", fill)
        (folder / "a.bin").write_bytes(b"slower")
        return "slower"

    assert store.build("kokoro", "hub", overtaken).note == "noted"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_a_disk_error(cache, number):
    def full(folder: Path) -> str:
        raise OSError(number, "no")

    with pytest.raises(DiskError, match="NUANCED_CACHE") as caught:
        store.build("kokoro", "hub", full)
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_made_is_a_disk_error(monkeypatch, cache):
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
def test_a_damaged_entry_is_said_and_discarded(cache, monkeypatch, logged, damage):
    entry = store.build("kokoro", "hub", fill)
    monkeypatch.setattr(store, "_verified", set())  # as a new process
    damage(entry.folder)
    assert store.find("kokoro", "hub") is None
    assert len(logged) == 1 and logged[0].endswith(": discarded")
    assert not entry.folder.exists() and leftovers(cache) == []


def test_an_entry_is_hashed_once_per_process(cache, monkeypatch, logged):
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
