"""nuanced_core.audio: reading, checking, resampling and writing of audio files."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.audio import load_audio, resample, write_audio
from nuanced_core.errors import AudioError, DiskError


def _tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(int(rate * seconds)) / rate)


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    write_audio(tmp_path / "tone.wav", _tone(24_000))
    assert [p.name for p in tmp_path.iterdir()] == ["tone.wav"]
    torch.testing.assert_close(load_audio(tmp_path / "tone.wav"), _tone(24_000), atol=1e-4, rtol=0)


def test_audio_above_full_scale_is_scaled_down_not_clipped(tmp_path: Path) -> None:
    write_audio(tmp_path / "loud.wav", 4 * _tone(24_000))
    torch.testing.assert_close(load_audio(tmp_path / "loud.wav"), 2 * _tone(24_000), atol=1e-3, rtol=0)


def test_stereo_at_another_rate_becomes_mono_at_the_requested_rate(tmp_path: Path) -> None:
    left = _tone(44_100).numpy()
    soundfile.write(tmp_path / "stereo.flac", np.stack([left, np.zeros_like(left)], axis=1), 44_100)
    audio = load_audio(tmp_path / "stereo.flac", 16_000)
    middle = slice(1000, 7000)
    torch.testing.assert_close(audio[middle], 0.5 * _tone(16_000)[middle], atol=2e-3, rtol=0)


def test_resampling_preserves_frequencies_below_both_nyquist_limits() -> None:
    middle = slice(2000, 6000)
    torch.testing.assert_close(
        resample(_tone(24_000), 24_000, 16_000)[middle], _tone(16_000)[middle], atol=2e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such file"),
        ("text", b"hello", "not a sound file"),
        ("short", np.ones(100), "too short"),
        ("silent", np.zeros(24_000), "is silent"),
        ("broken", np.full(24_000, np.nan), "not numbers"),
    ],
)
def test_errors_name_the_file_and_the_reason(
    tmp_path: Path, name: str, content: bytes | np.ndarray | None, message: str
) -> None:
    path = tmp_path / f"{name}.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, content, 24_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=message) as error:
        load_audio(path)
    assert str(path) in str(error.value)


def test_writing_into_a_missing_folder_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot be written"):
        write_audio(tmp_path / "no" / "a.wav", _tone(24_000))
