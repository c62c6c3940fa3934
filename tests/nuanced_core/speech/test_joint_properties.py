"""Joints of nuanced_core.speech with any sounds, times and blocks: length, silence, and no click."""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, load_audio
from nuanced_core.errors import AudioError
from nuanced_core.speech import streams
from nuanced_core.speech.conversion import Joiner
from nuanced_core.speech.speaking import FADE_SECONDS, FRAME, SENTENCE_PAUSE, Speaker, shaped
from nuanced_core.speech.streams import Recording, RecordingReader
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.transfer.imitation import faded
from tests.fakes import FakeKokoro

SEEDS = st.integers(0, 2**31)
SLOPE = 1 / (FADE_SECONDS * KOKORO_RATE) + 1e-3  # a fade of a sound at full scale adds so much to a step


class Written(streams.SoundWriter):
    """Keeps what is written, instead of a file."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.samples = 0

    def write(self, audio: Tensor) -> None:
        self.parts.append(audio.clone())
        self.samples += len(audio)


def smooth(samples: int, seed: int) -> Tensor:
    """A low tone that is loud at its ends, where it would click."""
    phase = seed % 7
    return 0.8 * torch.cos(2 * torch.pi * 150 * torch.arange(samples) / KOKORO_RATE + phase)


def largest_step(audio: Tensor) -> float:
    """The largest jump between two samples, silence before and after included."""
    return float(torch.nn.functional.pad(audio, (1, 1)).diff().abs().max()) if len(audio) else 0.0


def joined(sounds: Sequence[tuple[float, Tensor]], seconds: float) -> tuple[Tensor, int]:
    """The sounds at their times, and the sample at which the last one ends."""
    writer = Written()
    joiner, end = Joiner(writer), 0
    for start, audio in sounds:
        joiner.add(audio, start)
        end = max(end, round(start * KOKORO_RATE) + len(audio))
    joiner.finish(seconds)
    return torch.cat(writer.parts), end


@st.composite
def placed(draw: st.DrawFn) -> list[tuple[float, int, int]]:
    """(start, samples, seed) of sounds in rising order; the first one may begin before the recording."""
    start, found = draw(st.floats(-0.2, 1.0)), []
    for _ in range(draw(st.integers(1, 5))):
        found.append((start, draw(st.integers(0, 9_000)), draw(SEEDS)))
        start += draw(st.floats(-0.05, 0.6))
    return found


@settings(max_examples=60)
@given(placed(), st.floats(0, 4))
@example([(-0.1, 6_000, 0)], 0.5)
@example([(0.5, 3_000, 0), (0.45, 6_000, 0)], 0.5)
def test_sounds_are_joined_where_they_belong_without_a_click(
    places: list[tuple[float, int, int]], seconds: float
) -> None:
    sounds = [(start, faded(smooth(samples, seed))) for start, samples, seed in places]
    found, end = joined(sounds, seconds)
    assert len(found) == max(round(seconds * KOKORO_RATE), end)
    # Where sounds overlap, their steps add up.
    assert largest_step(found) <= sum(largest_step(audio) for _, audio in sounds) + SLOPE
    starts = [start for start, _ in sounds]
    if starts == sorted(starts) and starts[0] >= 0:
        expected = torch.zeros(len(found))
        for start, audio in sounds:
            first = round(start * KOKORO_RATE)
            expected[first : first + len(audio)] += audio
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@settings(max_examples=60)
@given(st.integers(0, 9_000), st.integers(1, 9_000), st.integers(0, 9_000), st.floats(0.001, 4), SEEDS)
def test_a_piece_begins_and_ends_in_silence_and_keeps_its_speech(
    before: int, speech: int, after: int, level: float, seed: int
) -> None:
    sound = torch.nn.functional.pad(level * smooth(speech, seed), (before, after))
    unchanged = sound.clone()
    piece = shaped(sound)
    assert torch.equal(sound, unchanged)
    assert piece[0] == 0 == piece[-1] and float(piece.abs().max()) <= 1
    assert FRAME <= len(piece) <= max(FRAME, len(sound))
    scaled = sound / max(1.0, float(sound.abs().max()))
    assert largest_step(piece) <= (float(scaled.diff().abs().max()) if len(sound) > 1 else 0) + SLOPE
    loud = (scaled.abs() > max(0.01 * float(scaled.abs().max()), 1e-3)).nonzero()
    assert not len(loud) or len(piece) > int(loud[-1] - loud[0])


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from(["Red door", "A blue window", "No rain"]), min_size=1, max_size=4),
    st.sampled_from([0.5, 1.0, 1.3, 2.0]),
)
def test_the_pauses_of_sentences_are_exact(sentences: list[str], speed: float) -> None:
    models = SimpleNamespace(
        kokoro=FakeKokoro(), phonemizer=Phonemizer("letters", str.lower), device=torch.device("cpu")
    )
    speaker = Speaker(SimpleNamespace(models=models))
    pack = torch.zeros(510, 1, 256)
    pieces = list(speaker.say(". ".join(sentences) + ".", pack, speed=speed))
    alone = [next(speaker.say(f"{sentence}.", pack, speed=speed)) for sentence in sentences]
    silence = torch.zeros(round(SENTENCE_PAUSE / speed * KOKORO_RATE))
    expected = [torch.cat([piece, silence]) for piece in alone[:-1]] + alone[-1:]
    assert len(pieces) == len(expected)
    for piece, wanted in zip(pieces, expected, strict=True):
        torch.testing.assert_close(piece, wanted, atol=1e-6, rtol=0)


@settings(max_examples=25)
@given(st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100]), st.floats(0.1, 3.5), st.integers(1, 3), SEEDS)
@example(11_025, 2.0, 1, 0)
def test_a_recording_in_blocks_is_the_whole_recording(rate: int, seconds: float, channels: int, seed: int) -> None:
    samples = 0.1 * np.random.default_rng(seed).standard_normal((int(np.ceil(seconds * rate)), channels))
    with tempfile.TemporaryDirectory() as folder, patch.object(streams, "BLOCK_SECONDS", 1):
        path = Path(folder) / "a.wav"
        soundfile.write(path, samples, rate, subtype="FLOAT")
        whole = load_audio(path, WHISPER_RATE)
        recording = Recording.open(path)
        torch.testing.assert_close(torch.cat(list(recording.blocks())), whole, atol=1e-4, rtol=0)
        reader, cuts = RecordingReader(recording), [0.0, 0.3 * seconds, 0.5 * seconds, seconds + 1]
        parts = [reader.part(start, end) for start, end in pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)


def test_samples_of_no_scale_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(np.float32([3e38, -3e38]), 8_000), 11_025, subtype="FLOAT")
    for read in (Recording.open, load_audio):
        with pytest.raises(AudioError, match=r"a\.wav: samples reach 3e\+38 times full scale; scale them"):
            read(tmp_path / "a.wav")
