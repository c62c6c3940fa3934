"""nuanced_core.people.excerpts with recordings that need not be heard."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.data.cache import Cache
from nuanced_core.people import excerpts
from nuanced_core.people.excerpts import Hear, find_person, recording_hearer

RATE = 16_000


def _write(path: Path, seconds: float) -> Path:
    """Write a ramp, so that each part of it can be recognised."""
    soundfile.write(path, np.linspace(0.1, 0.9, int(seconds * RATE)), RATE, subtype="FLOAT")
    return path


def _hearer(**reasons: str) -> Hear:
    """Reject the files that ``reasons`` name; the rate of another one is the length of its name."""

    def hear(file: Path, speaker: str) -> Any:
        return reasons.get(file.stem) or SimpleNamespace(file=file, rate=float(len(file.stem)))

    return hear


def test_the_first_recording_is_heard_and_compared_with_the_others(tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{name}.wav", 2 + i) for i, name in enumerate(("bad", "one", "b", "c"))]
    person, skipped = find_person("anna", files, _hearer(bad="is silent"))
    assert person is not None and person.speaker == "anna"
    assert person.heard.file == files[1] and person.rate == 3
    assert [excerpt.file for excerpt in person.compared] == files[2:]
    assert [len(excerpt.audio) / RATE for excerpt in (person.heard, *person.compared)] == [3, 4, 5]
    assert skipped == [(files[0], "is silent")]


def test_at_most_four_recordings_are_compared_and_the_others_not_heard(tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{i}.wav", 2) for i in range(8)]
    heard: list[Path] = []

    def hear(file: Path, speaker: str) -> Any:
        heard.append(file)
        return SimpleNamespace(file=file, rate=1.0)

    person, _ = find_person("anna", files, hear)
    assert person is not None and len(person.compared) == 4
    assert heard == files[:5]


def test_of_an_only_recording_the_halves_are_compared(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.wav", 6)
    person, skipped = find_person("anna", [file], _hearer())
    assert person is not None and skipped == []
    (second,) = person.compared
    assert person.heard.file == second.file == file
    assert len(person.heard.audio) == len(second.audio) == 3 * RATE
    assert float(person.heard.audio.max()) < float(second.audio.min())


def test_of_a_long_recording_half_a_minute_counts(tmp_path: Path) -> None:
    person, _ = find_person("anna", [_write(tmp_path / "a.wav", 40)], _hearer())
    assert person is not None and len(person.heard.audio) == len(person.compared[0].audio) == 15 * RATE
    assert person.heard.audio.untyped_storage().nbytes() <= 30 * RATE * 4


def test_of_an_hour_only_the_beginning_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "a.flac"
    hour = np.zeros(3600 * 8000, np.int16)
    hour[: 60 * 8000] = np.linspace(3000, 30_000, 60 * 8000)
    soundfile.write(file, hour, 8000)
    tracemalloc.start()  # NumPy's arrays are counted
    person, _ = find_person("anna", [file], _hearer())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert person is not None and len(person.heard.audio) == 15 * RATE
    assert most < hour.nbytes / 2


def test_an_only_recording_that_is_too_short_and_no_usable_one_give_nobody(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.wav", 3)
    person, skipped = find_person("anna", [file], _hearer())
    assert person is None
    assert skipped == [(file, "3.0 s: the halves of an only recording are compared; record 4 s, or another one")]
    assert find_person("anna", [file], _hearer(a="is silent")) == (None, [(file, "is silent")])


def test_recording_hearer_hears_what_the_cache_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[Path, Any] = {}
    heard: list[Path] = []

    class Hearer:
        def __init__(self, models: object, cache: Cache, settings: object) -> None:
            pass

        def find(self, file: Path, speaker: str) -> Any:
            return known.get(file)

        def hear(self, file: Path) -> None:
            heard.append(file)
            if file.stem != "lost":
                known[file] = "is silent" if file.stem == "silent" else SimpleNamespace(rate=torch.nan)

    monkeypatch.setattr(excerpts, "RecordingHearer", Hearer)
    hear = recording_hearer(None, Cache(tmp_path))  # type: ignore[arg-type]
    for _ in range(2):
        assert hear(Path("silent.wav"), "anna") == "is silent"
        assert hear(Path("good.wav"), "anna") is known[Path("good.wav")]
    assert heard == [Path("silent.wav"), Path("good.wav")]
    assert isinstance(hear(Path("lost.wav"), "anna"), str)
