"""The commands voice, mix and speak: what they write, and one line for each mistake."""

import io
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.audio import load_audio
from nuanced_core.data.model_set import ModelSet
from nuanced_core.judges.words import SpokenWords
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.speech import voices
from nuanced_core.speech.models import SpeechModels, StockModels
from nuanced_core.speech.packs import read_pack, write_pack
from nuanced_core.speech.voices import Voice
from nuanced_core.weights import fetch
from tests.speech_models import shipped_speech
from tests.tune.cli.test_app import error_of
from tune.cli.app import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_models(fakes: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The fakes, in place of the real models; their folder is outside the current one."""
    stock = SimpleNamespace(models=fakes)
    monkeypatch.setattr(StockModels, "load", classmethod(lambda cls, source="auto", device="auto": stock))
    speech = SpeechModels(SimpleNamespace(), fakes, SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(SpeechModels, "load", classmethod(lambda cls, *_: speech))
    files = SimpleNamespace(
        packs={name: folder / "voices" / f"{name}.npy" for name in fakes.voices.names}, source="hub"
    )
    monkeypatch.setattr(fetch, "fetch_voices", lambda source: files)
    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")
    return fakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("voice", "voice: missing argument 'CLIP…'"),
        ("voice a.wav", "voice: missing option '--out'"),
        ("voice a.wav -o me.wav", "me.wav: its name says no format"),
        ("voice a.wav -o me.pt --format mp3", "--format: 'mp3' is not a format of packs"),
        ("voice a.wav -o nowhere/me.pt", "nowhere/me.pt: there is no folder nowhere; create it"),
        ("voice a.wav -o me.pt --refine 0", "--refine: 0: give a number of minutes above 0"),
        ("voice a.wav -o me.pt --refine nan", "--refine: nan: give a number of minutes above 0"),
        ("voice a.wav -o me.pt --strength 9", "--strength: 9 is not between 0 and 3"),
        ("voice a.wav -o me.pt --blend af_heart", "blend 'af_heart': 'af_heart' has no voice or no share"),
        ("voice a.wav -o me.pt --blend af_hert=0.3", "voice: 'af_hert' is not a voice"),
        ("voice a.wav -o me.pt --keep-prosody af_hert", "voice: 'af_hert' is not a voice"),
        ("voice a.wav -o me.pt --keep-timbre no.pt", "no.pt: no such file"),
        ("voice a.wav -o me.pt --keep-timbre af_sky --keep-prosody af_sky", "--keep-prosody, --keep-timbre: together"),
        ("voice a.wav -o me.pt", "a.wav: no such file"),
        ("mix af_bella", "mix: missing option '--out'"),
        ("mix af_bela -o a.pt", "voice: 'af_bela' is not a voice"),
        ("mix af_bella(x) -o a.pt", "mix 'af_bella(x)': the weight 'x'"),
        ("mix af_bella -o a.txt", "a.txt: its name says no format"),
        ("mix af_bella -o nowhere/a.pt", "nowhere/a.pt: there is no folder nowhere"),
        ("speak Hello -o a.wav", "give either --voice or --like"),
        ("speak Hello -o a.wav --voice af_sky --like a.wav", "give either --voice or --like"),
        ("speak Hello -o a.wav --voice af_sky --speed 3", "--speed: 3 is not between 0.5 and 2"),
        ("speak Hello -o a.xyz --voice af_sky", "a.xyz: its name says no format; end it with .wav"),
        ("speak Hello -o nowhere/a.wav --voice af_sky", "nowhere/a.wav: there is no folder nowhere"),
        ("speak Hello -o . --voice af_sky", ".: its name says no format"),
        ("speak Hello -o a.wav --voice af_ski", "voice: 'af_ski' is not a voice"),
        ("speak Hello -o a.wav --voice no.pt", "no.pt: no such file"),
        ("speak Hello -o a.wav --like no.wav", "no.wav: no such file"),
        ("speak ... -o a.wav --voice af_sky", "text '...' has nothing to speak"),
        ("speak 你好 -o a.wav --voice af_sky", "text '你好' has nothing to speak in English"),
        ("speak book.txt -o a.wav --voice af_sky", "book.txt: no such file; name a text file, or give the text"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    without_models: SimpleNamespace, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(arguments.split(), capsys)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "has nothing to speak"),
        ("latin1.txt", "caf\xe9 au lait".encode("latin-1"), "latin1.txt: not UTF-8 text (unexpected end"),
        ("picture.txt", b"\x89PNG\xff", "picture.txt: not UTF-8 text"),
    ],
)
def test_a_text_file_that_is_none(
    without_models: SimpleNamespace, name: str, data: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(data)
    error = error_of(["speak", name, "-o", "a.wav", "--voice", "af_sky"], capsys)
    assert message.partition(" (")[0] in error
    assert [path.name for path in Path().iterdir()] == [name]


def test_an_interrupted_speech_leaves_no_file(without_models: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    speak = without_models.kokoro.speak

    def interrupted(*arguments: object, **options: object) -> object:
        if without_models.kokoro.spoken:
            raise KeyboardInterrupt
        return speak(*arguments, **options)

    monkeypatch.setattr(without_models.kokoro, "speak", interrupted)
    assert main(["speak", "Red door. No rain.", "-o", "a.wav", "--voice", "af_sky"]) == 130
    assert without_models.kokoro.spoken == 1 and not list(Path().iterdir())


def test_mix_writes_the_mix_in_each_format(without_models: SimpleNamespace) -> None:
    bank: VoiceBank = without_models.voices
    expected = (2 * bank.pack("af_bella") + bank.pack("af_sky"))[:, None] / 3
    for name in ("a.pt", "a.npz", "a.bin"):
        assert main(["mix", "af_bella(2)+af_sky(1)", "-o", name]) == 0
        torch.testing.assert_close(read_pack(name), expected)
    assert main(["mix", "a.bin+af_sky", "-o", "b", "--format", "bin"]) == 0
    assert Path("b").stat().st_size == Path("a.bin").stat().st_size


@pytest.mark.parametrize(("name", "kind"), [("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.ogg", "OGG"), ("a.mp3", "MP3")])
def test_speak_writes_the_format_of_the_name(without_models: SimpleNamespace, name: str, kind: str) -> None:
    assert main(["speak", "Red door. No rain.", "-o", name, "--voice", "af_sky"]) == 0
    info = soundfile.info(name)
    assert (info.format, info.samplerate, info.channels) == (kind, 24_000, 1) and info.duration > 1
    assert [path.name for path in Path().iterdir()] == [name]


def test_text_from_stdin_to_stdout_is_streamed_as_wav(
    without_models: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    arguments = ["--voice", "af_sky", "--speed", "2"]
    assert main(["speak", "Red door. No rain.", "-o", "a.wav", *arguments]) == 0
    capfdbinary.readouterr()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"Red door. No rain.\n")))
    assert main(["speak", "-", "-o", "-", *arguments]) == 0
    streamed, _ = capfdbinary.readouterr()
    Path("streamed.wav").write_bytes(streamed)
    torch.testing.assert_close(load_audio(Path("streamed.wav")), load_audio(Path("a.wav")), atol=1e-4, rtol=0)


def test_a_terminal_is_no_place_for_sound(
    without_models: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "-o -: the sound would be printed" in error_of(["speak", "Hello", "-o", "-", "--voice", "af_sky"], capsys)


def heard_once(hear: Callable[..., Voice]) -> Callable[..., Voice]:
    cached = cache(lambda speech, *clips: hear(speech, clips))
    return lambda speech, clips: cached(speech, *clips)


@pytest.mark.real
def test_from_a_clip_to_a_voice_to_speech(
    models: ModelSet, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speech = shipped_speech(models)
    monkeypatch.setattr(SpeechModels, "load", classmethod(lambda cls, *_: speech))
    monkeypatch.setattr(StockModels, "load", classmethod(lambda cls, *_: speech))
    assert main(["speak", "The river was wide and quiet.", "-o", "clip.wav", "--voice", "am_michael"]) == 0
    clip = load_audio(Path("clip.wav")).numpy()
    soundfile.write("clip.wav", np.concatenate([clip, clip]), 24_000)
    # The clip is heard once, for three commands.
    monkeypatch.setattr(voices, "voice_from_clips", heard_once(voices.voice_from_clips))
    options = ["--blend", "af_heart=0.25", "--strength", "1.2", "--keep-prosody", "bm_lewis"]
    assert main(["voice", "clip.wav", "-o", "me.pt"]) == 0
    assert main(["voice", "clip.wav", "-o", "mixed.bin", *options]) == 0
    assert "me.pt: a voice from" in capsys.readouterr().out
    me, mixed, bank = read_pack("me.pt"), read_pack("mixed.bin"), models.voices
    torch.testing.assert_close(mixed[..., 128:], bank.pack("bm_lewis")[:, None, 128:])
    mean = speech.encoder.mean_pack[:, None]
    timbre = 0.75 * (mean + 1.2 * (me - mean)) + 0.25 * bank.pack("af_heart")[:, None]
    torch.testing.assert_close(mixed[..., :128], timbre[..., :128], atol=1e-5, rtol=0)
    words = SpokenWords(models.whisper_file.path)
    for who in (["--voice", "me.pt"], ["--like", "clip.wav"]):
        assert main(["speak", "Open the old door.", "-o", "out.wav", *who]) == 0
        assert words(load_audio(Path("out.wav")), 24_000, "Open the old door.") == 0


def test_a_pack_of_the_wrong_shape_is_refused(
    without_models: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.zeros(3, 256), "bad.pt")
    assert "bad.pt: shape (3, 256)" in error_of(["speak", "Hello.", "-o", "a.wav", "--voice", "bad.pt"], capsys)
    write_pack(Path("good.pt"), torch.zeros(510, 1, 256))
    assert main(["speak", "Hello.", "-o", "a.wav", "--voice", "good.pt"]) == 0
