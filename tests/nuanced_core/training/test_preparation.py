from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data import cache as cache_module
from nuanced_core.data import rendering
from nuanced_core.data.cache import Cache
from nuanced_core.errors import ConfigError
from nuanced_core.training import preparation
from tests.fakes import FakeKokoro, FakeWhisper

LOGGERS = ("nuanced_core.data.rendering", "nuanced_core.training.preparation")

Prepare = Callable[..., list[str]]


class CountingKokoro(FakeKokoro):
    """Counts how often each style is rendered."""

    def __init__(self) -> None:
        super().__init__()
        self.rendered: Counter[tuple[float, ...]] = Counter()

    def speak(self, text, prosody, style, seeds, windows=None, **options):  # type: ignore[no-untyped-def]
        if windows is None:  # a whole clip
            self.rendered.update(tuple(s.tolist()) for s in style)
        return super().speak(text, prosody, style, seeds, windows, **options)


@pytest.fixture
def prepare_runs(
    tmp_path: Path,
    fakes: SimpleNamespace,
    tiny_run: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Prepare:
    """Prepares the tiny run with changed sections, once for each of them; returns the logged lines."""
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NUANCED_CACHE_LIMIT", raising=False)
    monkeypatch.setattr(preparation, "loaded_models", lambda settings, device: fakes)
    for name in LOGGERS:
        caplog.set_level("INFO", logger=name)

    def prepare(*changes: dict[str, Any]) -> list[str]:
        caplog.clear()
        runs = []
        for change in changes:
            data = {**tiny_run.model_dump(mode="json"), "augment": {"copies": 2}}
            for section, values in change.items():
                data[section] = {**data[section], **values}
            runs.append(validate(RunConfig, data, "x"))
        preparation.prepare(runs)
        return [record.getMessage() for record in caplog.records if record.name in LOGGERS]

    return prepare


@pytest.fixture
def prepare_voices(prepare_runs: Prepare, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares one run of some voices, as a new process unless it is the ``same_process``; returns the logged lines."""

    def prepare(*voices: str, same_process: bool = False) -> list[str]:
        if not same_process:
            monkeypatch.setattr(cache_module, "_used", set())
        return prepare_runs({"data": {"voices": list(voices)}})

    return prepare


def _entries(tmp_path: Path) -> set[Path]:
    return {entry.path for entry in Cache(tmp_path / "cache").entries() if entry.kind != "baselines"}


def test_missing_clips_are_rendered_with_their_versions(
    prepare_voices: Prepare, fakes: SimpleNamespace, tmp_path: Path
) -> None:
    assert prepare_voices("af_heart") == ["rendering 6 clips"]
    # Clean and two copies in training; clean and a condition in validation, where one condition is clean.
    assert fakes.whisper.heard == 2 * 3 + 4 + 3
    assert prepare_voices("af_heart") == []
    assert prepare_voices("af_heart", "af_bella") == ["rendering 2 clips"]
    entries = Cache(tmp_path / "cache").entries()
    assert len([e for e in entries if e.kind == "features"]) == 4 * 3 + 4 + 3


def test_clips_of_all_runs_are_rendered_in_one_round_and_none_twice(
    prepare_runs: Prepare, fakes: SimpleNamespace, tmp_path: Path
) -> None:
    fakes.kokoro = CountingKokoro()
    voices = {"data": {"voices": ["af_heart", "af_bella"]}}
    lines = prepare_runs(
        voices,
        {"data": {"voices": ["af_bella", "am_fenrir"]}},
        {**voices, "augment": {"copies": 3}},
        {**voices, "augment": {"copies": 1, "noise": 1.0}},
        {**voices, "objective": {"conditions": ["room"]}},
    )
    assert lines == ["rendering 10 clips"]  # three voices and two validation voices, two sentences each
    assert len(fakes.kokoro.rendered) == 10 and set(fakes.kokoro.rendered.values()) == {1}
    features = [e for e in Cache(tmp_path / "cache").entries() if e.kind == "features"]
    training = 3 * 2 * 3 + 2 * 2 * 2  # clean and two copies; of two voices a third copy, and one of other settings
    validation = 4 + 3 + 4  # clean; three conditions; room
    assert fakes.whisper.heard == len(features) == training + validation
    assert prepare_runs(voices, {**voices, "augment": {"copies": 3}}) == []


def test_a_layer_that_whisper_lacks_is_refused_before_anything_is_rendered(
    prepare_runs: Prepare, fakes: SimpleNamespace
) -> None:
    fakes.whisper_file.name = "tiny.en"
    with pytest.raises(ConfigError, match=r"features\.layers: \[5\]: Whisper tiny\.en has layers 0 to 4"):
        prepare_runs({"data": {"voices": ["af_heart"]}, "features": {"layers": [5]}})
    assert fakes.kokoro.spoken == 0


def test_workers_are_counted_from_the_requests_of_all_runs(
    prepare_runs: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    monkeypatch.setattr(rendering, "worker_count", lambda requests, models: counted.append(requests) or 1)
    prepare_runs({"data": {"voices": ["af_heart"]}}, {"data": {"voices": ["af_heart", "af_bella"]}})
    assert counted == [8]


def test_runs_with_other_models_share_clips_and_the_progress_bar(
    prepare_runs: Prepare, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(**{**vars(fakes), "whisper": FakeWhisper()})
    other.whisper_file = SimpleNamespace(sha256="other", name="other")
    monkeypatch.setattr(preparation, "loaded_models", lambda s, device: other if s.whisper == "base" else fakes)
    fakes.kokoro = other.kokoro = CountingKokoro()
    totals = []
    progress_bar = rendering.progress_bar
    monkeypatch.setattr(
        rendering, "progress_bar", lambda text, total: totals.append(total) or progress_bar(text, total)
    )
    voices = {"data": {"voices": ["af_heart"]}}
    lines = prepare_runs(voices, {**voices, "models": {"whisper": "base"}}, {**voices, "models": {"whisper": "base"}})
    assert totals == [12] and lines == ["rendering 12 clips"]
    assert len(fakes.kokoro.rendered) == 6 and set(fakes.kokoro.rendered.values()) == {1}
    assert fakes.whisper.heard == other.whisper.heard == 2 * 3 + 4 + 3


def test_prepare_returns_the_models_of_each_run_and_computes_its_baselines(
    prepare_runs: Prepare, fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    assert preparation.prepare([tiny_run, tiny_run]) == [fakes, fakes]
    before = fakes.kokoro.spoken
    preparation.prepare([tiny_run])
    assert fakes.kokoro.spoken == before
    assert [e.kind for e in Cache(tmp_path / "cache").entries()].count("baselines") == 4  # mean, oracle, nearest, ridge


def test_layer_that_whisper_lacks_is_an_error_before_the_baselines(prepare_runs: Prepare, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.layers: \[7\]: Whisper fake has layers 0 to 2"):
        prepare_runs({"features": {"layers": [7]}})
    assert "baselines" not in {e.kind for e in Cache(tmp_path / "cache").entries()}


def test_above_the_limit_entries_that_no_run_needs_are_removed(
    prepare_voices: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_voices("af_heart")
    first = _entries(tmp_path)
    prepare_voices("af_bella")
    second = _entries(tmp_path) - first
    assert len(second) == 2 * (1 + 3)  # two clips and the features of their versions
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "1GB")
    assert prepare_voices("af_bella") == [] and _entries(tmp_path) == first | second
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "0")
    *_, warning = prepare_voices("af_bella")
    assert "are needed, more than NUANCED_CACHE_LIMIT, 0 B" in warning
    kept = _entries(tmp_path)
    assert second < kept and len(first - kept) == 2 * (1 + 3)  # the validation clips stay
    prepare_voices("af_heart", same_process=True)
    assert _entries(tmp_path) == first | second  # since this process needs both now


def test_invalid_limit_is_an_error_before_the_work(
    prepare_voices: Prepare, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "little")
    with pytest.raises(ConfigError, match="NUANCED_CACHE_LIMIT: 'little'"):
        prepare_voices("af_heart")
    assert fakes.kokoro.spoken == 0


def test_invalid_settings_of_any_run_are_an_error_before_the_work(
    prepare_runs: Prepare, fakes: SimpleNamespace
) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_phonemes: 4"):
        prepare_runs({}, {"data": {"max_phonemes": 4}})
    assert fakes.kokoro.spoken == 0


def test_kept_clips_match_a_run_without_preparation(
    prepare_runs: Prepare, fakes: SimpleNamespace, tmp_path: Path, tiny_run: RunConfig
) -> None:
    """Features computed for a request with its augment settings are those that a run computes itself."""
    prepare_runs({"augment": {"copies": 2, "reverb": 0.9}})
    cache, alone = Cache(tmp_path / "cache"), Cache(tmp_path / "alone")
    data = {**tiny_run.model_dump(mode="json"), "augment": {"copies": 2, "reverb": 0.9}}
    config = validate(RunConfig, data, "x")
    dataset = preparation.Dataset(fakes, alone.folder, config.augment)  # type: ignore[arg-type]
    utterances = preparation.plan_utterances(config.data, config.mixes, fakes.voices, fakes.phonemizer)
    dataset.clips(utterances.train, dataset.versions)
    for entry in alone.entries():
        expected, found = (c.load(entry.kind, entry.path.stem) for c in (alone, cache))
        assert expected and found
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
