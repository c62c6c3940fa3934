"""nuanced_core.audio: reading, checking, resampling and writing of audio files."""

import resource
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.audio import load_audio, resample, sound_writer, wav_stream, write_audio
from nuanced_core.errors import AudioError, DiskError
from nuanced_core.sound_files import sound_blocks


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
    soundfile.write(tmp_path / "stereo.flac", np.stack([left, 0.5 * left], axis=1), 44_100)
    audio = load_audio(tmp_path / "stereo.flac", 16_000)
    middle = slice(1000, 7000)
    torch.testing.assert_close(audio[middle], 0.75 * _tone(16_000)[middle], atol=2e-3, rtol=0)


NOISE = 0.1 * torch.randn(12_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("channels", "used", "warning"),
    [
        ([_tone(24_000), -_tone(24_000)], 0, "its 2 channels cancel each other out: their mean is 120 dB quieter"),
        ([0.5 * _tone(24_000), -_tone(24_000)], 1, "cancel each other out: their mean is 12 dB quieter"),
        ([_tone(24_000), 0 * NOISE], 0, "of its 2 channels, 2 is silent; channel 1 was used"),
        ([1e-3 * NOISE, 0 * NOISE, 1e-3 * NOISE, _tone(24_000)], 3, "of its 4 channels, 1, 2, 3 are silent; channel 4"),
        ([_tone(24_000), NOISE, -_tone(24_000)], 0, "its 3 channels cancel each other out"),
        ([0.1 * _tone(24_000), _tone(24_000)], 1, "its 2 channels differ in level: their mean is 5 dB quieter"),
        ([_tone(24_000), 0.4 * _tone(24_000)], None, None),
        ([NOISE, NOISE.flip(0)], None, None),
        ([_tone(24_000)] * 6, None, None),
    ],
)
def test_mean_of_the_channels_or_the_loudest_one_if_they_cancel_or_are_silent(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    channels: list[torch.Tensor],
    used: int | None,
    warning: str | None,
) -> None:
    path = tmp_path / "channels.wav"
    samples = torch.stack(channels, dim=1)
    soundfile.write(path, samples.numpy(), 24_000, subtype="FLOAT")
    expected = samples.mean(dim=1) if used is None else samples[:, used]
    torch.testing.assert_close(load_audio(path), expected, atol=1e-6, rtol=0)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (0 if warning is None else 1)
    assert all(text.startswith(f"{path}: ") and (warning or "") in text for text in messages)


@pytest.mark.parametrize(
    ("samples", "warning"),
    [
        ((4 * _tone(24_000)).clamp(-1, 1), "of the samples are clipped; record it at a lower level"),
        (20_000 * _tone(24_000), "samples reach 10000 times full scale"),
        (_tone(24_000) / 0.5, None),
    ],
)
def test_clipped_and_unscaled_samples_are_reported_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, samples: torch.Tensor, warning: str | None
) -> None:
    soundfile.write(tmp_path / "a.wav", samples.numpy(), 24_000, subtype="FLOAT")
    torch.testing.assert_close(load_audio(tmp_path / "a.wav"), samples)
    assert [warning in record.getMessage() for record in caplog.records if warning] == [True] * (warning is not None)
    assert len(caplog.records) == (warning is not None)


def test_large_constant_offset_is_removed_with_a_warning_and_a_small_one_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "small.wav", (_tone(24_000) + 0.01).numpy(), 24_000, subtype="FLOAT")
    torch.testing.assert_close(load_audio(tmp_path / "small.wav"), _tone(24_000) + 0.01)
    assert not caplog.records
    soundfile.write(tmp_path / "large.wav", (_tone(24_000) + 0.2).numpy(), 24_000, subtype="FLOAT")
    torch.testing.assert_close(load_audio(tmp_path / "large.wav"), _tone(24_000), atol=1e-5, rtol=0)
    assert "has a constant offset (DC) of 0.200, which was removed" in caplog.text


def test_checking_channels_and_offset_takes_little_memory_beside_the_samples(tmp_path: Path) -> None:
    left = _tone(48_000, seconds=40.0)
    samples = torch.stack([left + 0.2, -left], dim=1).numpy()  # an offset, and channels that cancel each other out
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    tracemalloc.start()  # NumPy's arrays are counted
    audio = load_audio(tmp_path / "a.wav", 48_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    torch.testing.assert_close(audio, left, atol=1e-5, rtol=0)
    assert most < 2.5 * samples.nbytes


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.m4a"])
def test_of_a_long_file_only_the_beginning_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(tmp_path))
    tone = _tone(24_000, seconds=40.0) * torch.linspace(0.2, 1, 40 * 24_000)
    tone = torch.stack([tone, 0.9 * tone], dim=1).numpy()
    file = tmp_path / name
    soundfile.write(tmp_path / "whole.wav", tone, 24_000)
    if name == "a.m4a":
        subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "whole.wav", file], check=True)
    else:
        soundfile.write(file, tone, 24_000)
    whole = load_audio(file)
    assert torch.equal(load_audio(file, seconds=60.0), whole)  # of a shorter one, all is read
    decoded: list[int] = []

    def blocks(path: Path, seconds: float) -> Iterator[tuple[np.ndarray, int]]:
        for block, rate in sound_blocks(path, seconds):
            decoded.append(len(block))
            yield block, rate

    monkeypatch.setattr("nuanced_core.audio.sound_blocks", blocks)
    monkeypatch.setattr("nuanced_core.audio.read_sound", None)
    found = load_audio(file, seconds=12.5)
    assert torch.equal(found, whole[: len(found)]) and len(found) == 12.5 * 24_000
    assert sum(decoded) == 20 * 24_000


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"hello", "not a sound file"), (b"", "is empty")]
)
def test_errors_are_those_of_the_whole_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=message):
        load_audio(path, seconds=1.0)


def test_resampling_preserves_frequencies_below_both_nyquist_limits() -> None:
    middle = slice(2000, 6000)
    torch.testing.assert_close(
        resample(_tone(24_000), 24_000, 16_000)[middle], _tone(16_000)[middle], atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_056, 96_000, 192_000, 16_001, 24_001])
def test_any_rate_is_resampled_without_gigabytes_of_memory(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", _tone(rate).numpy(), rate, subtype="FLOAT")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    audio = load_audio(tmp_path / "a.wav", 16_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert len(audio) == pytest.approx(8_000, abs=1)
    torch.testing.assert_close(audio[2000:6000], _tone(16_000)[2000:6000], atol=4e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such file"),
        ("text", b"hello", "not a sound file"),
        ("short", np.ones(100), "too short"),
        ("silent", np.zeros(24_000), "is silent"),
        ("offset", np.full(24_000, 0.3), "is silent"),
        ("one", np.ones(1), "0.00 s is too short"),
        ("none", np.ones(0), "0.00 s is too short"),
        ("broken", np.full(24_000, np.nan), "24000 of 24000 samples are not numbers"),
        ("nan", np.r_[np.ones(24_000), np.nan], "1 of 24001 samples are not numbers"),
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


def test_a_rate_at_which_there_is_no_speech_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _tone(100, seconds=10, hertz=20).numpy(), 100)
    with pytest.raises(AudioError, match=r"a\.wav: its rate is 100 Hz, at which there is no speech; export it again"):
        load_audio(tmp_path / "a.wav")


def test_writing_into_a_missing_folder_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot be written"):
        write_audio(tmp_path / "no" / "a.wav", _tone(24_000))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_a_sound_written_in_blocks_is_read_back(tmp_path: Path, name: str) -> None:
    tone = _tone(24_000, seconds=1.0)
    with sound_writer(tmp_path / name) as write:
        for block in tone.split(7_000):
            write(block)
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    found = load_audio(tmp_path / name)[: len(tone)]
    assert len(found) == len(tone)
    assert float((found - tone).square().mean() / tone.square().mean()) < (1e-6 if name in ("a.wav", "a.flac") else 0.5)


def test_an_exception_while_writing_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with sound_writer(tmp_path / "a.wav") as write:
            write(_tone(24_000))
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_sound_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(AudioError, match=r"a.xyz: its name says no format; end it with .wav"),
        sound_writer(Path("a.xyz")),
    ):
        pass
    with pytest.raises(DiskError, match="cannot be written"), sound_writer(tmp_path / "nowhere" / "a.wav"):
        pass


def test_a_wav_stream_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    tone = _tone(16_000)
    with (tmp_path / "stream.wav").open("wb") as file:
        write = wav_stream(file, 16_000)
        for block in (tone[:3_000], 3 * tone[3_000:4_000], tone[4_000:]):
            write(block)
    expected = torch.cat([tone[:3_000], (3 * tone[3_000:4_000]).clamp(-1, 1), tone[4_000:]])
    torch.testing.assert_close(load_audio(tmp_path / "stream.wav", 16_000), expected, atol=1e-4, rtol=0)
