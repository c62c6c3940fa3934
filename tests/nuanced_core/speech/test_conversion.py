"""nuanced_core.speech.conversion with fake models: segments, styles, places, levels, and what is refused."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import load_audio
from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import AudioError, ConfigError, DiskError, NuancedError, TextError, VoiceError
from nuanced_core.speech import conversion, streams
from nuanced_core.speech.conversion import Conversion, convert
from nuanced_core.transfer.loudness import loudness
from nuanced_core.transfer.words import Word
from tests.fakes import LivelyKokoro, fake_models, random_encoder

RATE = 16_000
# (start, end, Hz, level) of what is "said".
SAID = ((0.5, 2.0, 120.0, 0.05), (3.0, 4.5, 200.0, 0.3), (6.0, 7.4, 150.0, 0.1))
SECONDS = 8.0


class LoudWords:
    """Hears two words in everything that is loud for at least 0.5 s; keeps what it was asked."""

    def __init__(self) -> None:
        self.languages: list[int] = []

    def words(self, audio: Tensor) -> list[Word]:
        frames = audio[: len(audio) // 400 * 400].reshape(-1, 400).square().mean(dim=1) > 1e-5
        edges = torch.nonzero(torch.diff(torch.nn.functional.pad(frames.int(), (1, 1))))[:, 0].tolist()
        found = []
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            start, end = first / 40, last / 40
            if end - start > 0.5:
                middle = (start + end) / 2
                found += [Word("Open", start, middle), Word("doors.", middle, end)]
        return found

    def check_language(self, audio: Tensor, place: str) -> None:
        self.languages.append(len(audio))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Tones of several harmonics, with pauses between them."""
    time = np.arange(int(SECONDS * RATE)) / RATE
    samples = np.zeros_like(time)
    for start, end, hertz, level in SAID:
        inside = (time >= start) & (time < end)
        samples[inside] = level * sum(np.sin(2 * np.pi * hertz * n * time[inside]) / n for n in range(1, 9))
    soundfile.write(tmp_path / "source.wav", samples, RATE, subtype="FLOAT")
    return tmp_path / "source.wav"


@pytest.fixture
def speech(tmp_path: Path, tiny_run: RunConfig) -> Any:
    models = fake_models(tmp_path / "voices")
    models.kokoro, models.source = LivelyKokoro(), "none"
    return SimpleNamespace(encoder=random_encoder(models, tiny_run).eval(), models=models, run=tiny_run)


Converted = Callable[..., Conversion]


@pytest.fixture
def converted(source: Path, tmp_path: Path, speech: Any) -> Converted:
    def run(**settings: Any) -> Conversion:
        return convert(source, tmp_path / "target.wav", speech=speech, hearer=LoudWords(), **settings)

    return run


@pytest.mark.parametrize("timing", ["source", "kokoro"])
def test_pauses_are_those_of_the_source(converted: Converted, timing: str) -> None:
    found = converted(timing=timing)
    assert [(s.start, s.end) for s in found.segments] == [(start, end) for start, end, _, _ in SAID]
    assert found.segments[0].spoken_start == SAID[0][0]
    for a, b in pairwise(found.segments):
        assert b.spoken_start - a.spoken_end == pytest.approx(b.start - a.end, abs=0.15 if timing == "source" else 1e-6)
    if timing == "source":
        for segment in found.segments:
            assert segment.spoken_start == pytest.approx(segment.start, abs=0.03)
            assert segment.spoken_end == pytest.approx(segment.end, abs=0.1)
        assert load_audio(found.target).shape == (SECONDS * 24_000,)
    else:
        # Ten letters of four frames, a space between them, and the boundaries left out.
        assert all(s.spoken_end - s.spoken_start == pytest.approx(1.0) for s in found.segments)
        rest = SECONDS - SAID[-1][1]
        assert len(load_audio(found.target)) / 24_000 == pytest.approx(found.segments[-1].spoken_end + rest, abs=1e-3)


def test_between_the_segments_it_is_silent_and_there_is_no_click(converted: Converted) -> None:
    found = converted()
    audio = load_audio(found.target)
    assert float(audio[: int(0.2 * 24_000)].abs().max()) < 1e-4
    assert float(audio[int(5.2 * 24_000) : int(5.7 * 24_000)].abs().max()) < 1e-4
    steps = audio.diff().abs()
    assert all(float(steps[int(at * 24_000) - 200 : int(at * 24_000) + 200].max()) < 0.1 for at in (2.3, 4.8))


def test_hold_draws_styles_from_each_segment_s_own_to_one_for_all(converted: Converted, speech: Any) -> None:
    own, half, one = (converted(hold=hold).segments for hold in (0.0, 0.5, 1.0))
    for a, b, c in zip(own, half, one, strict=True):
        torch.testing.assert_close(b.style, (a.style + c.style) / 2, atol=1e-5, rtol=1e-5)
        assert torch.equal(c.style, one[0].style)
    assert not torch.allclose(own[0].style, own[1].style, atol=1e-2)


def test_a_voice_gives_its_timbre_and_its_pitch_and_the_source_its_prosody(converted: Converted, speech: Any) -> None:
    plain, found = converted(hold=0.0), converted(hold=0.0, voice="bm_lewis")
    rows = speech.models.voices.pack("bm_lewis")
    for a, b in zip(plain.segments, found.segments, strict=True):
        assert torch.equal(b.style[128:], a.style[128:])
        assert torch.equal(b.style[:128], rows[b.phonemes - 1, :128])


def test_loudness_is_the_source_s_and_follows_its_segments_by_the_contour(converted: Converted, source: Path) -> None:
    whole = loudness(load_audio(source, RATE), RATE)

    def levels(found: Conversion) -> list[float]:
        audio = load_audio(found.target)
        return [loudness(audio[int(s.start * 24_000) : int(s.end * 24_000)], 24_000) for s in found.segments]

    own = [segment.loudness for segment in converted().segments]
    assert own[1] - own[0] == pytest.approx(20 * math.log10(6), abs=1.5)
    assert levels(converted(contour=0.0)) == pytest.approx([whole] * 3, abs=1.0)
    # An audio louder than full scale would be scaled down; these are not.
    assert levels(converted(contour=1.0)) == pytest.approx(own, abs=1.0)
    assert levels(converted(contour=0.5)) == pytest.approx([(level + whole) / 2 for level in own], abs=1.0)
    assert loudness(load_audio(converted(contour=1.0).target), 24_000) == pytest.approx(whole, abs=1.0)


def test_given_words_are_spoken_where_others_were_heard(converted: Converted) -> None:
    found = converted(text="Open windows. Open doors. Open all the doors!")
    assert found.text == "Open windows. Open doors. Open all the doors!"
    texts = [" ".join(word.text for word in segment.words) for segment in found.segments]
    assert texts == ["Open windows.", "Open doors.", "Open all the doors!"]
    assert [s.start for s in found.segments] == pytest.approx([start for start, *_ in SAID], abs=0.01)


def test_a_transcript_has_times_words_and_styles(converted: Converted, tmp_path: Path) -> None:
    found = converted(transcript=tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text())
    assert read == found.to_json()
    assert read["text"] == "Open doors. Open doors. Open doors."
    assert [segment["start"] for segment in read["segments"]] == [start for start, *_ in SAID]
    assert [segment["pitch"] for segment in read["segments"]] == pytest.approx([hz for _, _, hz, _ in SAID], rel=0.02)
    assert read["segments"][1]["words"][1] == {"word": "doors.", "start": 3.75, "end": 4.5}
    np.testing.assert_allclose(read["segments"][2]["style"], found.segments[2].style, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "source.wav", "target.wav", "voices"]


def test_small_chunks_and_blocks_give_what_the_whole_gives(
    converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = converted(timing="kokoro")
    level = _levels(load_audio(whole.target))
    monkeypatch.setattr(streams, "LONGEST_CHUNK", 3.2)
    monkeypatch.setattr(streams, "SHORTEST_CHUNK", 1.5)
    monkeypatch.setattr(streams, "BLOCK_SECONDS", 1)
    monkeypatch.setattr(conversion, "GROUP", 1)
    found = converted(timing="kokoro")
    for a, b in zip(whole.segments, found.segments, strict=True):
        assert [word.text for word in a.words] == [word.text for word in b.words]
        assert (a.start, a.end, a.spoken_start, a.spoken_end) == pytest.approx(
            (b.start, b.end, b.spoken_start, b.spoken_end)
        )
        # The style of the whole is taken from the speech, whose pauses are left out where a chunk is cut.
        assert float((a.style - b.style).norm() / a.style.norm()) < 0.1
    assert float((_levels(load_audio(found.target)) - level).abs().max()) < 1.0


def _levels(audio: Tensor) -> Tensor:
    """Level in dB of each 0.1 s, at least -60."""
    return 10 * audio[: len(audio) // 2400 * 2400].reshape(-1, 2400).square().mean(dim=1).clamp(min=1e-6).log10()


def test_the_language_is_checked_once_on_the_speech(source: Path, tmp_path: Path, speech: Any) -> None:
    hearer = LoudWords()
    convert(source, tmp_path / "a.wav", speech=speech, hearer=hearer)
    assert hearer.languages == [round((SAID[-1][1] - SAID[0][0]) * RATE)]


BAD: list[tuple[dict[str, Any], type[NuancedError], str]] = [
    ({"window": 0.1}, ConfigError, "window: 0.1 s is not between 1 and 20 s"),
    ({"window": math.nan}, ConfigError, "window: nan"),
    ({"hold": 1.5}, ConfigError, "hold: 1.5 is not between 0 and 1"),
    ({"contour": -1}, ConfigError, "contour: -1"),
    ({"timing": "mine"}, ConfigError, "timing: 'mine' is unknown; choose source or kokoro"),
    ({"text": " ... "}, TextError, "has nothing to speak"),
    ({"voice": "af_hart"}, VoiceError, "af_hart"),
    ({"target": "a.xyz"}, ConfigError, "says no format"),
    ({"target": "none/a.wav"}, DiskError, "there is no folder"),
    ({"target": "source.wav"}, ConfigError, r"source\.wav: is given twice"),
    ({"target": "source.wav", "transcript": "t.json"}, ConfigError, r"source\.wav: is given twice"),
    ({"transcript": "source.wav"}, ConfigError, r"source\.wav: is given twice"),
    ({"transcript": "target.wav"}, ConfigError, r"target\.wav: is given twice"),
    ({"transcript": "none/a.json"}, DiskError, "there is no folder"),
    ({"source": "missing.wav"}, AudioError, "no such file"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(
    source: Path, tmp_path: Path, speech: Any, settings: dict[str, Any], error: type[NuancedError], message: str
) -> None:
    places = {"source": source, "target": tmp_path / "target.wav"}
    for name in ("source", "target", "transcript"):
        if name in settings:
            places[name] = tmp_path / settings[name]
    before = source.read_bytes()
    rest = {name: value for name, value in settings.items() if name not in places}
    with pytest.raises(error, match=message) as raised:
        convert(**places, speech=speech, hearer=LoudWords(), **rest)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.wav", "voices"]
    assert source.read_bytes() == before


def test_a_recording_without_words_is_refused(source: Path, tmp_path: Path, speech: Any) -> None:
    deaf: Any = SimpleNamespace(words=lambda audio: [])
    with pytest.raises(AudioError, match=r"source\.wav: no words were heard in it"):
        convert(source, tmp_path / "a.wav", speech=speech, hearer=deaf)
    unspeakable: Any = SimpleNamespace(words=lambda audio: [Word("...", 0.5, 2.0)], check_language=lambda *_: None)
    with pytest.raises(TextError, match="nothing that was heard can be spoken"):
        convert(source, tmp_path / "a.wav", speech=speech, hearer=unspeakable)


def test_models_are_loaded_when_the_rest_is_checked(source: Path, tmp_path: Path, speech: Any) -> None:
    def never() -> Any:
        pytest.fail("loaded")

    with pytest.raises(ConfigError, match="hold"):
        convert(source, tmp_path / "a.wav", speech=never, hold=2)
    with pytest.raises(AudioError, match="no such file"):
        convert(tmp_path / "b.wav", tmp_path / "a.wav", speech=never)
    assert convert(source, tmp_path / "a.wav", speech=lambda: speech, hearer=LoudWords()).text


def test_an_error_while_speaking_leaves_nothing(
    converted: Converted, tmp_path: Path, speech: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak, calls = speech.models.kokoro.speak, []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise AudioError("in between")
        return speak(*arguments, **options)

    monkeypatch.setattr(speech.models.kokoro, "speak", fails)
    with pytest.raises(AudioError, match="in between"):
        converted()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.wav", "voices"]
