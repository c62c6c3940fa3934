"""nuanced_core.people.clips: what is refused, and what is noticed in clips of one person."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import AudioError
from nuanced_core.people.clips import group_similarity, load_clips, speech_to_background
from tests.nuanced_core.people.conftest import buzz, write


def _samples(seconds: float, value: float = 0.0) -> np.ndarray:
    return np.full(round(seconds * 16_000), value, np.float32)


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("silent.wav", _samples(5), "silent.wav: is silent"),
        ("short.wav", buzz(1, seconds=2.9), "short.wav: 2.90 s is too short; give at least 3 s"),
        ("tiny.wav", _samples(0.05, 0.1), "tiny.wav: 0.05 s is too short"),
        ("empty.wav", _samples(0), "empty.wav: 0.00 s is too short"),
        ("nan.wav", _samples(5, np.nan), "nan.wav: 80000 of 80000 samples are not numbers"),
        ("noise.wav", 0.1 * np.random.default_rng(0).standard_normal(80_000), "noise.wav: there is no voice in it"),
        ("word.wav", np.concatenate([buzz(1, seconds=0.4), _samples(9)]), "word.wav: only 0.7 s of speech"),
    ],
)
def test_clips_that_give_no_voice_are_refused(
    tmp_path: Path, fakes: SimpleNamespace, name: str, samples: np.ndarray, message: str
) -> None:
    soundfile.write(tmp_path / name, samples, 16_000, "FLOAT")
    with pytest.raises(AudioError) as caught:
        load_clips(fakes, [tmp_path / name])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_sound_are_refused(tmp_path: Path, fakes: SimpleNamespace) -> None:
    (tmp_path / "text.wav").write_text("not a sound")
    for file in (tmp_path / "text.wav", tmp_path / "missing.wav", tmp_path):
        with pytest.raises(AudioError, match=str(file)):
            load_clips(fakes, [file])
    with pytest.raises(AudioError, match="give at least one"):
        load_clips(fakes, [])


def test_hours_are_refused_without_being_decoded(
    tmp_path: Path, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(4_000 * 3600 * 3, np.int16), 4_000)
    soundfile.write(tmp_path / "pipe.wav", np.zeros(4_000 * 3600 * 3, np.int16), 4_000, "PCM_U8")
    with (tmp_path / "pipe.wav").open("r+b") as file:
        file.seek(file.read(100).index(b"data") + 4)
        file.write(bytes(4))  # as by a program that writes to a pipe
    monkeypatch.setattr("nuanced_core.people.clips.load_audio", None)
    for name in ("long.flac", "pipe.wav"):
        with pytest.raises(AudioError, match=rf"{name}: 180 min is too long; give at most 10 min"):
            load_clips(fakes, [tmp_path / name])


def test_what_is_noticed_is_a_note_and_no_log_line(
    tmp_path: Path, fakes: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    clipped = np.clip(8 * buzz(1, seconds=4), -1, 1)
    (clip,) = load_clips(fakes, [write(tmp_path / "loud.wav", clipped)])
    assert "samples are clipped" in clip.notes[0]
    noisy = buzz(1, seconds=4) + 0.03 * np.random.default_rng(0).standard_normal(64_000)
    (clip,) = load_clips(fakes, [write(tmp_path / "noisy.wav", noisy)])
    assert any("noise: the speech is only" in note for note in clip.notes)
    assert caplog.text == ""


def test_channels_and_rates_do_not_matter(tmp_path: Path, fakes: SimpleNamespace) -> None:
    mono = resample(torch.from_numpy(buzz(1, seconds=4)), 16_000, 96_000).numpy()
    (many,) = load_clips(fakes, [write(tmp_path / "many.wav", np.stack([mono] * 8, axis=1), 96_000)])
    (one,) = load_clips(fakes, [torch.from_numpy(buzz(1, seconds=4))])
    assert many.notes == one.notes == ()
    assert abs(len(many.audio) - len(one.audio)) < 400
    assert one.name == "clip 1" and one.seconds == pytest.approx(4, abs=0.3)


def test_long_pauses_are_shortened(fakes: SimpleNamespace) -> None:
    voice = torch.from_numpy(buzz(1, seconds=3))
    (clip,) = load_clips(fakes, [torch.cat([torch.zeros(80_000), voice, torch.zeros(80_000), voice])])
    assert len(clip.audio) / WHISPER_RATE < 8


def test_a_clip_without_a_voice_is_left_out_with_a_note(fakes: SimpleNamespace) -> None:
    noise = 0.1 * torch.randn(64_000, generator=torch.Generator().manual_seed(0))
    (clip,) = load_clips(fakes, [torch.from_numpy(buzz(1, seconds=4)), noise])
    assert clip.name == "clip 1" and any("clip 2: there is no voice in it" in note for note in clip.notes)


def test_level_above_the_background() -> None:
    voice = torch.from_numpy(buzz(1, seconds=4))
    speech = torch.cat([voice, torch.zeros(16_000)])
    noise = torch.randn(len(speech), generator=torch.Generator().manual_seed(0)) * speech.square().mean().sqrt()
    assert speech_to_background(speech + 10 ** (-10 / 20) * noise) == pytest.approx(10, abs=3)
    assert speech_to_background(speech + 10 ** (-30 / 20) * noise) == pytest.approx(30, abs=4)


def test_groups_of_embeddings() -> None:
    east, north = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    pieces = torch.nn.functional.normalize(torch.stack([east, north, east, north, north]), dim=1)
    assert group_similarity(pieces) == pytest.approx(float(pieces[0] @ pieces[1]))
    assert group_similarity(pieces[[0, 0, 0, 1]]) == 1.0


@pytest.mark.real
def test_two_people_are_noticed_one_after_another_in_turns_and_in_two_clips(models: ModelSet) -> None:
    sentence = models.phonemizer("The river was wide.")
    text = models.kokoro.encode_text([sentence])
    spoken = []
    for name in ("af_heart", "am_michael"):
        style = models.voices.style(name, len(sentence))[None]
        with torch.no_grad():
            audio = models.kokoro.speak(text, models.kokoro.prosody(text, style), style, [0]).item(0)
        spoken.append(resample(audio, KOKORO_RATE, WHISPER_RATE))
    a, b = spoken
    note = "two people seem to speak in"
    (turns,) = load_clips(models, [torch.cat([a, a, b, b, a, a, b, b])])
    assert len(turns.notes) == 1 and note in turns.notes[0]
    first, second = load_clips(models, [torch.cat([a, a]), torch.cat([b, b])])
    assert len(first.notes) == 1 and note in first.notes[0] and second.notes == ()
    (one,) = load_clips(models, [torch.cat([a] * 4)])
    assert one.notes == ()
