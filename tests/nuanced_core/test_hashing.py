"""nuanced_core.hashing: digests, cache keys and seeds, which must not change between versions."""

import hashlib
import json
from pathlib import Path

import pytest

from nuanced_core.hashing import content_key, derived_seed, hash_bytes, hash_file

# Keys and seeds of an earlier version: caches on disk are addressed by them, and results depend on them.
KNOWN = [
    ((), "43de3a417d75f4818c5a553268b80ce3a5805109a3bbc6b605e9fb0b8f50b485", 569318688),
    (("a",), "107c9e1ca0578a7d3116bf1134ee5d2a3ba5ec9589645a532ca012f5d6344daa", 138301198),
    (("a", 1, 2.5, None, True), "bce2f1fd5cfb40f3d1fbdbf3dd447c4ac4bd97367cec4d5ffba54a29e5ca15ca", 1584494846),
    (("é", {"b": [1, 2]}, "x"), "27ce49dc36e2fa1a3d7aaf3e691e5a4b863efcc7fa82708869af8e478cb25777", 333915374),
]


@pytest.mark.parametrize(("parts", "key", "seed"), KNOWN)
def test_keys_and_seeds_are_those_of_earlier_versions(parts: tuple[object, ...], key: str, seed: int) -> None:
    assert content_key(*parts) == key
    assert derived_seed(*parts) == seed


def test_a_key_is_the_sha256_of_the_format_and_the_parts_as_json() -> None:
    assert content_key("a", 2) == hashlib.sha256(json.dumps(["1", "a", 2]).encode()).hexdigest()


def test_keys_depend_on_types_and_boundaries_of_parts() -> None:
    keys = [content_key(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("1",), (1,), ([1],), (1, 1))]
    assert len(set(keys)) == len(keys)


def test_parts_that_are_not_json_are_an_error() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        content_key(Path("a"))


def test_seeds_have_31_bits() -> None:
    seeds = [derived_seed(i) for i in range(200)]
    assert len(set(seeds)) == 200
    assert 2**30 < max(seeds) < 2**31


@pytest.mark.parametrize("size", [0, 3, 2**20, 2**20 + 1])  # bytes; files are read in blocks of 2**20
def test_a_file_has_the_sha256_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = (b"0123456789" * (size // 10 + 1))[:size]
    (tmp_path / "a").write_bytes(data)
    assert hash_file(tmp_path / "a") == hash_bytes(data) == hashlib.sha256(data).hexdigest()
    with pytest.raises(OSError, match="missing"):
        hash_file(tmp_path / "missing")
