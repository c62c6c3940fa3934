"""``nuanced convert``: its options, what it prints, and its one line for each bad input."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from nuanced_core.speech.conversion import convert as REAL
from tune.cli.app import main


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def convert(source: Path, target: Path, **settings: Any) -> Any:
        found.append({"source": source, "target": target, **settings})
        return SimpleNamespace(seconds=3.25, segments=[1, 2], text="Hello there.")

    monkeypatch.setattr("nuanced_core.speech.conversion.convert", convert)
    monkeypatch.setattr("nuanced_core.speech.models.SpeechModels.load", lambda *arguments: arguments)
    return found


def test_options_are_passed_on(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--window", "4", "--hold", "0.3", "--timing", "kokoro", "--contour", "0.1", "--text", "Hello there."]
    more = [
        "--voice",
        "af_heart",
        "--transcript",
        "t.json",
        "--whisper",
        "tiny.en",
        "--model",
        "mine",
        "--device",
        "cpu",
    ]
    assert main(["convert", "in.wav", "out.mp3", *options, *more]) == 0
    load = calls[0].pop("speech")
    assert load() == (Path("mine"), "auto", "cpu")
    assert calls[0] == {
        "source": Path("in.wav"),
        "target": Path("out.mp3"),
        "window": 4.0,
        "hold": 0.3,
        "timing": "kokoro",
        "contour": 0.1,
        "text": "Hello there.",
        "voice": "af_heart",
        "transcript": Path("t.json"),
        "whisper": "tiny.en",
    }
    assert capsys.readouterr().out == "out.mp3: 3.2 s in 2 segments: 'Hello there.'\n"


def test_the_command_and_the_function_have_the_same_defaults(calls: list[dict[str, Any]]) -> None:
    assert main(["convert", "in.wav", "out.wav"]) == 0
    defaults = {name: parameter.default for name, parameter in inspect.signature(REAL).parameters.items()}
    given = {name: value for name, value in calls[0].items() if name not in ("source", "target", "speech")}
    assert given == {name: defaults[name] for name in given}
    assert len(given) == 8


SPEECH = 0.1 * np.random.default_rng(0).normal(size=32_000)


def _broken(folder: Path, name: str) -> Path:
    file = folder / f"{name}.wav"
    if name == "empty":
        file.touch()
    elif name == "not audio":
        file.write_text("no sound at all, but a text that somebody renamed")
    elif name == "truncated":
        soundfile.write(file, SPEECH, 16_000)
        file.write_bytes(file.read_bytes()[:40])
    elif name == "short":
        soundfile.write(file, SPEECH[:1000], 16_000)
    elif name == "silent":
        soundfile.write(file, 0 * SPEECH, 16_000)
    elif name == "NaN":
        soundfile.write(file, np.where(SPEECH > 0.2, np.nan, SPEECH), 16_000, subtype="FLOAT")
    elif name == "folder":
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "is empty (0 bytes)"),
        ("not audio", "not a sound file that can be read"),
        ("truncated", "not a sound file that can be read (Error in WAV file"),
        ("short", "is too short"),
        ("silent", "is silent"),
        ("NaN", "are not numbers"),
        ("folder", "is a folder"),
        ("missing", "no such file"),
    ],
)
def test_a_bad_recording_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    file = _broken(tmp_path, name)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(file), str(tmp_path / "out.wav")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nuanced: error: {file}: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
