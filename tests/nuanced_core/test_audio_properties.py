"""nuanced_core.audio on any sound: what is loaded is finite, mono, as long as it was, and sounds the same."""

import math
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nuanced_core.audio import LARGEST_PEAK, load_audio, resample
from nuanced_core.errors import AudioError

# Format, subtype, and the largest error of a sample at full scale; None: lossy.
LOSSLESS = [("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 1e-6), ("WAV", "PCM_U8", 1e-2)]
LOSSLESS += [("FLAC", "PCM_16", 1e-4), ("FLAC", "PCM_24", 1e-6), ("AIFF", "PCM_16", 1e-4), ("AU", "FLOAT", 1e-6)]
RATES = st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
TARGETS = st.sampled_from([16_000, 24_000])


def tone(rate: int, samples: int, hertz: float) -> npt.NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)


def load(
    samples: npt.NDArray[np.float32], rate: int, target: int, kind: str = "WAV", subtype: str = "FLOAT"
) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"
        soundfile.write(path, samples, rate, format=kind, subtype=subtype)
        return load_audio(path, target)


@settings(max_examples=20)
@given(RATES, TARGETS, st.sampled_from(LOSSLESS), st.integers(1, 6), st.floats(0.1, 0.5), st.floats(100, 3_000))
@example(24_001, 16_000, LOSSLESS[0], 2, 0.1, 3_000.0)
def test_a_tone_keeps_its_length_pitch_and_level(
    rate: int, target: int, form: tuple[str, str, float], channels: int, seconds: float, hertz: float
) -> None:
    kind, subtype, error = form
    count = math.ceil(seconds * rate)
    samples = np.repeat(tone(rate, count, hertz)[:, None], channels, axis=1)
    loaded = load(samples, rate, target, kind, subtype)
    assert loaded.dtype == torch.float32
    assert loaded.shape == (math.ceil(count * target / rate),)
    middle = slice(len(loaded) // 4, -len(loaded) // 4)  # the filter sees zeros beyond the ends
    expected = torch.from_numpy(tone(target, len(loaded), hertz))
    torch.testing.assert_close(loaded[middle], expected[middle], atol=2 * error + (rate != target) * 5e-3, rtol=0)


@settings(max_examples=25)
@given(
    st.sampled_from([("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]),
    st.sampled_from([16_000, 24_000, 44_100]),
    st.integers(1, 2),
)
def test_a_lossy_file_keeps_length_and_pitch(form: tuple[str, str], rate: int, channels: int) -> None:
    samples = np.repeat(tone(rate, rate // 2, 440.0)[:, None], channels, axis=1)
    loaded = load(samples, rate, 24_000, *form)
    assert abs(len(loaded) - 12_000) <= 0.06 * 24_000  # an encoder pads to its frames
    spectrum = torch.fft.rfft(loaded[2_000:10_000]).abs()
    assert abs(int(spectrum.argmax()) * 24_000 / 8_000 - 440.0) <= 3.0


@settings(max_examples=60)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(400, 1_600), st.integers(1, 3)),
        elements=st.floats(width=32),
        fill=st.floats(-1, 1, width=32),
    ),
    st.sampled_from([4_000, 11_025, 16_000]),
)
@example(np.full((800, 2), np.finfo(np.float32).max, np.float32), 16_000)
@example(np.where(np.arange(1_600)[:, None] % 2, np.float32(3e38), np.float32(-3e38)), 11_025)
@example(np.repeat(np.where(np.arange(1_600)[:, None] % 2, np.float32(3e38), np.float32(0)), 2, axis=1), 16_000)
@example(np.where(np.arange(1_600)[:, None] % 2, np.float32(9e11), np.float32(-9e11)), 11_025)
@example(np.full((1_600, 1), 1e-45, np.float32), 16_000)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_any_samples_are_loaded_finite_or_refused_in_one_line(samples: npt.NDArray[np.float32], rate: int) -> None:
    try:
        loaded = load(samples, rate, 16_000)
    except AudioError as error:
        assert "\n" not in str(error)
        return
    assert np.abs(samples).max() <= LARGEST_PEAK
    assert loaded.shape == (math.ceil(len(samples) * 16_000 / rate),)
    assert bool(torch.isfinite(loaded).all())


@given(RATES, TARGETS, st.integers(1, 3), st.integers(1, 5_000))
@example(24_001, 16_000, 2, 1_000)
@settings(max_examples=40)
def test_resampling_keeps_duration_and_constants(source: int, target: int, rows: int, count: int) -> None:
    audio = torch.full((rows, count), 0.5)
    found = resample(audio, source, target)
    assert found.shape == (rows, math.ceil(count * target / source))
    edge = 40 * max(1, math.ceil(target / source))  # a few periods of the filter
    torch.testing.assert_close(found[:, edge:-edge], torch.full_like(found[:, edge:-edge], 0.5), atol=5e-3, rtol=0)
