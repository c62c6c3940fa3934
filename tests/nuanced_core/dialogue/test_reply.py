"""A reply with the real models: what is told to the chat endpoint, and what is spoken."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.audio import load_audio, write_audio
from nuanced_core.data.model_set import ModelSet
from nuanced_core.dialogue.reply import reply
from nuanced_core.errors import AudioError
from nuanced_core.judges.words import SpokenWords
from nuanced_core.speech.models import StockModels
from nuanced_core.speech.speaking import Speaker
from tests.nuanced_core.dialogue.conftest import FakeChat
from tune.cli.app import main

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def question(models: ModelSet, tmp_path: Path) -> Path:
    file = tmp_path / "question.wav"
    pack = models.voices.pack("bm_fable")[:, None]
    text = "Is the old harbour far away from here, or can I walk there before it gets dark?"
    write_audio(file, torch.cat([*Speaker(StockModels(models)).say(text, pack)]))
    return file


def test_the_answer_to_a_recording_is_spoken(
    question: Path,
    chat: FakeChat,
    models: ModelSet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # The models of the session, so that Kokoro is not loaded again.
    monkeypatch.setattr("nuanced_core.data.model_set.ModelSet.fetch", lambda *_: models)
    monkeypatch.chdir(Path(__file__).parents[3])
    chat.content = "**The old door is open.** Turn left."
    out = question.with_name("answer.wav")
    arguments = ["reply", str(question), str(out), "--llm", chat.url, "--model", "tiny", "--system", "Be brief."]
    assert main(arguments) == 0
    printed, logged = capsys.readouterr()
    assert "answer: The old door is open. Turn left." in printed and KEY not in printed + logged
    ((_, headers, body),) = chat.requests
    assert headers["authorization"] == f"Bearer {KEY}"
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    words, _, manner = user["content"].partition("\n\n[How it was said]\n")
    assert "harbo" in words and "far away from here" in words
    assert "syllables per second, median pitch " in manner and "dBFS" in manner
    said = SpokenWords(models.whisper_file.path).transcribe(load_audio(out), 24_000).lower()
    assert "the old door is open" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--llm": "nowhere"}, "--llm nowhere: not a URL"),
        ({"--llm": "http://a..b/v1"}, "--llm http://a..b/v1: not a URL: a part of its host is empty"),
        ({"OUT": "absent/out.wav"}, "absent/out.wav: there is no folder absent"),
        ({"IN": "absent.wav"}, "absent.wav: no such file"),
        ({"--key": "sk-secret-key"}, "--key: give env:NAME"),
        ({"--key": "env:NO_SUCH_VARIABLE"}, "--key: env:NO_SUCH_VARIABLE: the environment variable"),
        ({"--speed": "9"}, "--speed 9: give 0.5 to 2"),
        ({"--usual": "absent.wav"}, "absent.wav: no such file"),
        ({"--encoder": "absent"}, "absent/config.json: no such file"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_sent(
    change: dict[str, str],
    message: str,
    tmp_path: Path,
    chat: FakeChat,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.wav").write_bytes(b"RIFF")
    given = {"IN": "in.wav", "OUT": "out.wav", "--llm": chat.url, "--model": "tiny"} | change
    options = [word for name, value in given.items() if name.startswith("--") for word in (name, value)]
    assert main(["reply", given["IN"], given["OUT"], *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"nuanced: error: {message}") and err.count("\n") == 1
    assert "sk-secret-key" not in err and not chat.requests
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_hours_of_a_recording_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(601 * 4000, np.int16), 4000)
    without_models: Any = SimpleNamespace(models=None)
    nowhere: Any = None
    with pytest.raises(AudioError, match=r"long\.wav: 10 min is too long; give at most 10 min of it$"):
        reply(without_models, tmp_path / "long.wav", nowhere)
