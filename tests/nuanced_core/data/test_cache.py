import os
import re
import time
from pathlib import Path

import pytest
import torch

from nuanced_core.data import cache as cache_module
from nuanced_core.data.cache import Cache, cache_limit, format_size, parse_size
from nuanced_core.errors import ConfigError, DiskError
from nuanced_core.hashing import content_key

KEYS = [content_key(i) for i in range(4)]
TENSORS = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).half(), "b": torch.tensor([1, 2, 3])}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Makes this process look like a new one, which has read and written nothing."""

    def forget() -> None:
        monkeypatch.setattr(cache_module, "_verified", set())
        monkeypatch.setattr(cache_module, "_used", set())

    forget()
    return forget


def _file(cache: Cache, key: str = KEYS[0], kind: str = "clips") -> Path:
    return cache.folder / kind / key[:2] / f"{key}.safetensors"


def _same(found: dict[str, torch.Tensor] | None) -> bool:
    return (
        found is not None and found.keys() == TENSORS.keys() and all(torch.equal(found[n], TENSORS[n]) for n in found)
    )


def test_saved_tensors_are_loaded(cache: Cache) -> None:
    assert cache.load("clips", KEYS[0]) is None and cache.names("clips", KEYS[0]) is None
    assert not cache.has("clips", KEYS[0])
    cache.save("clips", KEYS[0], TENSORS)
    assert _same(cache.load("clips", KEYS[0]))
    assert list(cache.load("clips", KEYS[0], ["b"]) or ()) == ["b"]
    assert sorted(cache.names("clips", KEYS[0]) or ()) == ["a", "b"]
    assert cache.has("clips", KEYS[0]) and not cache.has("features", KEYS[0])


def test_flipped_bit_is_detected_anywhere(cache: Cache, forget) -> None:  # type: ignore[no-untyped-def]
    cache.save("clips", KEYS[0], TENSORS)
    whole = _file(cache).read_bytes()
    detected = []
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        _file(cache).write_bytes(damaged)
        forget()
        found = cache.load("clips", KEYS[0])
        assert found is None or _same(found), place
        detected.append(found is None)
    data = sum(t.nbytes for t in TENSORS.values())
    assert all(detected[-data:])  # a flipped bit of the header may have no effect


def test_truncated_entry_is_detected_and_replaced(cache: Cache, forget) -> None:  # type: ignore[no-untyped-def]
    cache.save("clips", KEYS[0], TENSORS)
    whole = _file(cache).read_bytes()
    for length in range(len(whole)):
        _file(cache).write_bytes(whole[:length])
        assert cache.load("clips", KEYS[0]) is None, length
    cache.save("clips", KEYS[0], TENSORS)
    forget()
    assert _same(cache.load("clips", KEYS[0]))


def test_tensors_are_hashed_when_first_read(cache: Cache, forget, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    cache.save("clips", KEYS[0], TENSORS)
    hashed = []
    digest = cache_module._digest
    monkeypatch.setattr(cache_module, "_digest", lambda tensor: hashed.append(tensor.shape) or digest(tensor))
    for _ in range(3):
        cache.load("clips", KEYS[0], ["b"])
    assert hashed == [(3,)]
    for _ in range(3):
        Cache(cache.folder).load("clips", KEYS[0])
    assert hashed == [(3,), (3, 4)]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_tensors_are_memory_mapped(cache: Cache) -> None:
    cache.save("clips", KEYS[0], TENSORS)
    found = cache.load("clips", KEYS[0])
    assert found and str(_file(cache)) in Path("/proc/self/maps").read_text()


def _four_entries(cache: Cache) -> int:
    """Make entries that were used 4, 3, 2 and 1 hours ago; return the size of one in bytes."""
    for hours, key in zip((4, 3, 2, 1), KEYS, strict=True):
        cache.save("features", key, TENSORS)
        os.utime(_file(cache, key, "features"), (time.time() - hours * 3600,) * 2)
    return _file(cache, KEYS[0], "features").stat().st_size


def test_least_recently_used_entries_are_pruned_first(cache: Cache, forget) -> None:  # type: ignore[no-untyped-def]
    each = _four_entries(cache)
    forget()
    cache.load("features", KEYS[0], ["b"])
    forget()
    assert cache.prune(4 * each) == []
    assert [entry.path.stem for entry in cache.prune(2 * each + 1)] == KEYS[1:3]
    assert [entry.path.stem for entry in cache.entries()] == [KEYS[3], KEYS[0]]
    assert len(cache.prune(0)) == 2 and cache.entries() == []


def test_entries_used_by_this_process_are_not_pruned(cache: Cache, forget) -> None:  # type: ignore[no-untyped-def]
    _four_entries(cache)
    forget()
    cache.load("features", KEYS[0], ["a"])
    assert cache.has("features", KEYS[1])
    assert [entry.path.stem for entry in cache.prune(0)] == KEYS[2:]
    assert {entry.path.stem for entry in cache.entries()} == set(KEYS[:2])


def test_time_of_use_is_written_once_per_process(cache: Cache, forget) -> None:  # type: ignore[no-untyped-def]
    _four_entries(cache)
    forget()
    cache.load("features", KEYS[0])
    assert time.time() - _file(cache, KEYS[0], "features").stat().st_mtime < 600
    os.utime(_file(cache, KEYS[0], "features"), (0, 0))
    cache.load("features", KEYS[0])
    assert _file(cache, KEYS[0], "features").stat().st_mtime == 0


def test_files_that_are_not_entries_are_kept(cache: Cache, forget) -> None:  # type: ignore[no-untyped-def]
    cache.save("clips", KEYS[0], TENSORS)
    others = [cache.folder / name for name in ("weights/kokoro/entry.json", "clips/notes.txt", "a.safetensors")]
    others.append(cache.folder / "weights" / "aa" / f"{KEYS[0]}.safetensors")
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    forget()
    assert [entry.kind for entry in cache.prune(0)] == ["clips"]
    assert cache.verify() == []
    assert all(file.read_text() == "mine" for file in others)


def test_partial_files_are_removed_after_an_hour(cache: Cache) -> None:
    cache.save("clips", KEYS[0], TENSORS)
    old, young = (_file(cache).with_name(f"{KEYS[0]}.safetensors.{n}.part") for n in ("0a", "0b"))
    old.write_text("x")
    young.write_text("x")
    os.utime(old, (time.time() - 3700,) * 2)
    cache.prune(10**9)
    assert not old.exists() and young.exists() and _file(cache).exists()


def test_verify_removes_only_damaged_entries(cache: Cache) -> None:
    for key in KEYS[:3]:
        cache.save("windows", key, TENSORS)
        cache.load("windows", key)
    contents = bytearray(_file(cache, KEYS[1], "windows").read_bytes())
    contents[-1] ^= 1
    _file(cache, KEYS[1], "windows").write_bytes(contents)
    scores = cache.folder / "baselines"
    scores.mkdir()
    (scores / f"{KEYS[0]}.json").write_text("{}")
    (scores / f"{KEYS[1]}.json").write_text("{")
    assert {(entry.kind, entry.path.stem) for entry in cache.verify()} == {("windows", KEYS[1]), ("baselines", KEYS[1])}
    assert len(cache.entries()) == 3


def test_entry_without_hashes_counts_as_missing(cache: Cache) -> None:
    from safetensors.torch import save_file

    _file(cache).parent.mkdir(parents=True)
    save_file(TENSORS, _file(cache))
    assert cache.load("clips", KEYS[0]) is None
    assert len(cache.verify()) == 1


def test_file_in_place_of_the_cache_folder_is_an_error(cache: Cache) -> None:
    cache.folder.parent.mkdir(exist_ok=True)
    cache.folder.write_text("")
    with pytest.raises(DiskError, match=r"clips/..: the cache cannot be written: .*NUANCED_CACHE"):
        cache.save("clips", KEYS[0], TENSORS)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10GB", 10**10), ("500MB", 5 * 10**8), ("0", 0), ("1.5 kb", 1500), ("2t", 2 * 10**12), (" 7 B ", 7)],
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size(text, "x") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "10 GiB", "ten", "1e9", "nan"])
def test_invalid_size_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--prune: {text!r} is not a size; write 10GB")):
        parse_size(text, "--prune")


def test_sizes_are_formatted() -> None:
    assert [format_size(n) for n in (0, 999, 1500, 2_000_000, 10**10)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 MB",
        "10.0 GB",
    ]


def test_limit_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUANCED_CACHE_LIMIT", raising=False)
    assert cache_limit() is None
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "2GB")
    assert cache_limit() == 2 * 10**9
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="NUANCED_CACHE_LIMIT: 'much'"):
        cache_limit()
