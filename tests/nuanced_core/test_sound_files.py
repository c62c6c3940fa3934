"""nuanced_core.sound_files: formats, content against names, files that are cut off, and files that cannot be read."""

import io
import logging
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from nuanced_core.errors import AudioError
from nuanced_core.sound_files import SOUND_SUFFIXES, is_sound_file, looks_like_sound, read_sound

RATE = 24_000
TIME = np.arange(10 * RATE) / RATE
SPEECH = (0.4 * np.sin(2 * np.pi * 3 * TIME) ** 2 * np.sin(2 * np.pi * 440 * TIME + 5 * np.sin(TIME))).astype(
    np.float32
)
M4A = b"\0\0\0\x1cftypM4A \0\0\x02\0M4A isomiso2" + bytes(100)


def _encoded(format: str, subtype: str | None = None, samples: np.ndarray = SPEECH) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that returns the warnings that were logged so far."""
    caplog.set_level(logging.WARNING, "nuanced_core")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 0.02),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("WAV", "ULAW", 0.05),
        ("WAV", "GSM610", 0.3),
        ("RF64", "PCM_16", 1e-4),
        ("W64", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("AU", "PCM_16", 1e-4),
        ("CAF", "ALAC_16", 1e-4),
        ("FLAC", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.1),
        ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_every_format_is_recognised_by_its_content_whatever_the_file_is_called(
    tmp_path: Path, format: str, subtype: str, tolerance: float, warnings: Callable[[], list[str]]
) -> None:
    content = _encoded(format, subtype)
    for name in ("noending", "x.mp3", "x.WAV", "x.raw", "x.m4a"):
        (tmp_path / name).write_bytes(content)
        samples, rate = read_sound(tmp_path / name)
        assert (rate, samples.shape, samples.dtype) == (RATE, (len(SPEECH), 1), np.float32)
        assert float(np.abs(samples[2000:-2000, 0] - SPEECH[2000:-2000]).max()) <= tolerance
        assert is_sound_file(tmp_path / name)
    assert not warnings()


@pytest.mark.parametrize("format", ["WAV", "RF64", "W64", "AIFF", "AU", "SVX", "FLAC", "MP3"])
def test_file_that_is_cut_off_is_read_as_far_as_it_goes_and_reported(
    tmp_path: Path, format: str, warnings: Callable[[], list[str]]
) -> None:
    file, content = tmp_path / "cut", _encoded(format)
    file.write_bytes(content[: int(0.6 * len(content))])
    samples, _ = read_sound(file)
    assert len(samples) == pytest.approx(0.6 * len(SPEECH), rel=0.05)
    if format != "MP3":  # lossy
        np.testing.assert_allclose(samples[:, 0], SPEECH[: len(samples)], atol=1e-4)
    (warning,) = warnings()
    assert warning == f"{file}: is cut off or damaged: only {len(samples) / RATE:.1f} s of 10.0 s could be read"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("part", [0.6, 0.995])  # without many pages, and in the middle of the last one
def test_ogg_that_is_cut_off_is_reported(
    tmp_path: Path, subtype: str, part: float, warnings: Callable[[], list[str]]
) -> None:
    file, content = tmp_path / "cut.ogg", _encoded("OGG", subtype)
    file.write_bytes(content[: int(part * len(content))])
    samples, _ = read_sound(file)
    assert 0.3 * len(SPEECH) < len(samples) < len(SPEECH)
    (warning,) = warnings()
    assert warning == f"{file}: is cut off: it ends before its stream does; {len(samples) / RATE:.1f} s were read"


@pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
def test_wav_whose_writer_could_not_fill_in_the_size_is_read_whole(
    tmp_path: Path, size: int, warnings: Callable[[], list[str]]
) -> None:
    content = bytearray(_encoded("WAV", "PCM_16"))
    at = content.index(b"data")
    content[4:8] = content[at + 4 : at + 8] = struct.pack("<I", size)
    (tmp_path / "pipe.wav").write_bytes(content)
    samples, _ = read_sound(tmp_path / "pipe.wav")
    np.testing.assert_allclose(samples[:, 0], SPEECH, atol=1e-4)
    assert not warnings()


def test_streams_of_other_formats_without_a_size_are_read_whole(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    au = bytearray(_encoded("AU", "PCM_16"))
    au[8:12] = b"\xff" * 4
    flac = bytearray(_encoded("FLAC", "PCM_16"))
    flac[21] &= 0xF0  # the last 36 bits before the MD5 sum count the samples
    flac[22:26] = bytes(4)
    for name, content in {"pipe.au": au, "pipe.flac": flac}.items():
        (tmp_path / name).write_bytes(content)
        samples, _ = read_sound(tmp_path / name)
        np.testing.assert_allclose(samples[:, 0], SPEECH, atol=1e-4)
    assert not warnings()


def test_sizes_that_are_off_by_a_header_and_text_after_the_samples_are_no_cut(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    content = bytearray(_encoded("WAV", "PCM_16"))
    at = content.index(b"data")
    (size,) = struct.unpack("<I", content[at + 4 : at + 8])
    content[at + 4 : at + 8] = struct.pack("<I", size + 44)
    (tmp_path / "off.wav").write_bytes(content)
    text = b"LIST" + struct.pack("<I", 60_000) + b"INFO" + bytes(10_000)  # of 60,000 bytes
    (tmp_path / "text.wav").write_bytes(_encoded("WAV", "PCM_16") + text)
    for name in ("off.wav", "text.wav"):
        assert len(read_sound(tmp_path / name)[0]) == len(SPEECH)
    assert not warnings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"hello", "not a sound file that can be read.*convert it to WAV"),
        (
            M4A,
            r"is an MPEG-4 file \(m4a, mp4, mov\), which only ffmpeg reads; .*: ffmpeg -i 'my take.m4a' 'my take.wav'",
        ),
        (b"\x1aE\xdf\xa3" + bytes(50), "is a Matroska or WebM file"),
        (b"0&\xb2u" + bytes(50), "is a Windows Media file"),
        (b"\xff\xf1X@" + bytes(50), "is an AAC file"),
        (_encoded("CAF")[:6000], "is damaged or cut off.*copy it again"),
    ],
)
def test_files_that_cannot_be_read_without_ffmpeg_are_named_with_the_fix(
    tmp_path: Path, no_ffmpeg: None, content: bytes, message: str
) -> None:
    file = tmp_path / "my take.m4a"
    file.write_bytes(content)
    with pytest.raises(AudioError, match=f"^{file}: {message}") as error:
        read_sound(file)
    assert "\n" not in str(error.value)
    assert not is_sound_file(file)


def test_links_folders_and_locked_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "take.wav").mkdir()
    for name, message in (
        ("link.wav", f"is a link to {tmp_path}/gone.wav, which does not exist; copy the file itself"),
        ("take.wav", "is a folder; name a sound file"),
        ("gone.wav", "no such file; give a WAV, FLAC, OGG or MP3 file"),
    ):
        with pytest.raises(AudioError) as error:
            read_sound(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {message}"

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match=r"cannot be opened \(Permission denied\); check its permissions"):
        read_sound(tmp_path / "locked.wav")


@pytest.fixture
def with_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile private.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nprivate.wav\n#EXT-X-ENDLIST\n",
    ],
)
@pytest.mark.parametrize("name", ["clip.m4a", "clip.m3u8"])
def test_a_playlist_reads_no_other_file(tmp_path: Path, with_ffmpeg: None, content: str, name: str) -> None:
    soundfile.write(tmp_path / "private.wav", SPEECH, RATE)
    (tmp_path / name).write_text(content)
    with pytest.raises(AudioError, match="not a sound file that can be read"):
        read_sound(tmp_path / name)


@pytest.mark.parametrize("name", ["a.m4a", "a.aac", "a.wma", "a.webm"])
def test_other_formats_are_read_with_ffmpeg_if_it_is_installed(tmp_path: Path, with_ffmpeg: None, name: str) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([SPEECH, 0.5 * SPEECH], axis=1), RATE)
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", tmp_path / name], check=True)
    samples, rate = read_sound(tmp_path / name)
    assert samples.shape[1] == 2 and len(samples) / rate == pytest.approx(10, abs=0.1)
    assert samples.std(axis=0) == pytest.approx([SPEECH.std(), 0.5 * SPEECH.std()], rel=0.05)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(AudioError, match=r"a\.\w+: not a sound file that can be read \(ffmpeg: .*convert it") as error:
        read_sound(tmp_path / name)
    assert "\n" not in str(error.value)


def test_suffixes_are_distinct_and_in_lower_case() -> None:
    assert len(set(SOUND_SUFFIXES)) == len(SOUND_SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SOUND_SUFFIXES)


def test_a_file_looks_like_sound_by_its_ending_or_without_one_by_its_content(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sound.wav", np.zeros(100), 16_000)
    (tmp_path / "sound.wav").rename(tmp_path / "sound")
    for name in ("a.WAV", "b.m4a", ".c.wav", "notes", "notes.txt", "d.wav.part"):
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert {path.name for path in tmp_path.iterdir() if looks_like_sound(path)} == {"a.WAV", "b.m4a", "sound"}
