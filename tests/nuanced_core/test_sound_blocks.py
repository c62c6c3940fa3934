"""nuanced_core.sound_files.sound_blocks: the samples of read_sound, in blocks."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from nuanced_core.errors import AudioError
from nuanced_core.sound_files import read_sound, sound_blocks, sound_seconds
from tests.nuanced_core.test_sound_files import M4A, RATE, SPEECH, _encoded


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "GSM610"), ("FLAC", None), ("MP3", None), ("OGG", "VORBIS")],
)
def test_blocks_joined_are_the_whole_file(tmp_path: Path, format: str, subtype: str | None) -> None:
    file = tmp_path / "sound"
    file.write_bytes(_encoded(format, subtype))
    blocks = list(sound_blocks(file, 0.7))
    assert max(len(block) for block, _ in blocks) == round(0.7 * RATE)
    whole, rate = read_sound(file)
    assert {rate} == {found for _, found in blocks}
    joined = np.concatenate([block for block, _ in blocks])
    np.testing.assert_array_equal(joined, whole)


def test_what_only_ffmpeg_reads_is_read_in_blocks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE)
    ffmpeg = str(tmp_path / "bin" / "ffmpeg")
    command = [ffmpeg, "-v", "error", "-i", str(tmp_path / "a.wav"), str(tmp_path / "a.m4a")]
    subprocess.run(command, check=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    blocks = [block for block, _ in sound_blocks(tmp_path / "a.m4a", 2.0)]
    np.testing.assert_array_equal(np.concatenate(blocks), read_sound(tmp_path / "a.m4a")[0])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match="which only ffmpeg reads"):
        next(sound_blocks(tmp_path / "a.m4a", 2.0))


def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "cut.wav"
    file.write_bytes(_encoded("WAV", "PCM_16")[: 2 * 3 * RATE + 44])
    assert sum(len(block) for block, _ in sound_blocks(file, 1.0)) == 3 * RATE
    assert "only 3.0 s of 10.0 s could be read" in caplog.text


@pytest.mark.parametrize("name", ["pipe.wav", "pipe.raw"])
def test_a_wav_whose_writer_could_not_fill_in_the_size_is_read_in_blocks_too(tmp_path: Path, name: str) -> None:
    content = _encoded("WAV", "PCM_16")
    start = content.index(b"data") + 4
    (tmp_path / name).write_bytes(content[:start] + bytes(4) + content[start + 4 :])
    blocks = [block for block, _ in sound_blocks(tmp_path / name, 0.7)]
    assert max(map(len, blocks)) == round(0.7 * RATE)
    np.testing.assert_allclose(np.concatenate(blocks)[:, 0], SPEECH, atol=1e-4)
    assert sound_seconds(tmp_path / name) == len(SPEECH) / RATE
    (tmp_path / name).write_bytes(content[:start] + bytes(4))  # truly empty
    assert [block.shape for block, _ in sound_blocks(tmp_path / name, 0.7)] == [(0, 1)]
    assert sound_seconds(tmp_path / name) == 0


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "is empty"), (b"no sound " * 9, "not a sound file"), (M4A, "which only ffmpeg reads")]
)
def test_a_file_that_cannot_be_read_is_refused_as_by_read_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(AudioError, match=message):
        next(sound_blocks(tmp_path / "bad", 1.0))
    with pytest.raises(AudioError, match="no such file"):
        next(sound_blocks(tmp_path / "missing", 1.0))
