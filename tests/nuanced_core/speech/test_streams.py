"""nuanced_core.speech.streams: recordings in blocks are what load_audio reads; sounds appear when they are complete."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.audio import load_audio
from nuanced_core.errors import AudioError, ConfigError, DiskError
from nuanced_core.speech import streams
from nuanced_core.speech.streams import Recording, RecordingReader, SoundWriter

NOISE = np.random.default_rng(0)


def _speech(seconds: float, rate: int) -> np.ndarray:
    """Noise in syllables, with a pause of 0.5 s every 5 s."""
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.2 * NOISE.normal(size=len(time)) * np.sin(2 * np.pi * 2 * time) ** 2
    return np.asarray(np.where(time % 5 < 4.5, wave, 0.0), dtype=np.float32)


@pytest.mark.parametrize(
    ("rate", "suffix"), [(44_100, "wav"), (16_000, "flac"), (8_000, "wav"), (192_000, "flac"), (22_050, "mp3")]
)
def test_blocks_joined_are_what_load_audio_reads(tmp_path: Path, rate: int, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    soundfile.write(file, np.stack([_speech(23.3, rate), _speech(23.3, rate)], axis=1), rate)
    recording = Recording.open(file)
    blocks = list(recording.blocks())
    assert [len(block) for block in blocks[:2]] == [160_000, 160_000]
    whole = load_audio(file, 16_000)
    assert recording.seconds == pytest.approx(len(whole) / 16_000, abs=1e-3)
    torch.testing.assert_close(torch.cat(blocks), whole, atol=1e-5, rtol=1e-4)


def test_chunks_are_cut_in_pauses_and_lose_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _speech(75, 16_000), 16_000, subtype="FLOAT")
    recording = Recording.open(tmp_path / "a.wav")
    chunks = list(recording.chunks())
    assert all(len(chunk) <= 29 * 16_000 for chunk in chunks)
    assert torch.equal(torch.cat(chunks), torch.cat(list(recording.blocks())))
    for place in np.cumsum([len(chunk) for chunk in chunks[:-1]]):
        assert place % 400 == 0
        assert 4.55 < place / 16_000 % 5 < 4.95


def test_a_reader_cuts_parts_and_forgets_what_is_past(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", _speech(200, 8_000), 8_000)
    recording = Recording.open(tmp_path / "a.wav")
    whole = torch.cat(list(recording.blocks()))
    reader, longest = RecordingReader(recording), 0
    for start in (-0.5, 3.0, 2.0, 28.0, 95.5, 90.0, 170.0, 198.0):
        expected = whole[max(0, int(start * 16_000)) : int((start + 3.5) * 16_000)]
        assert torch.equal(reader.part(start, start + 3.5), expected)
        longest = max(longest, len(reader._held))
    assert longest <= (streams.KEPT_SECONDS + 2 * streams.BLOCK_SECONDS) * 16_000


def test_channels_and_offset_are_treated_as_by_load_audio(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = _speech(12, 16_000)
    for name, samples in {
        "antiphase": np.stack([sound, -sound], axis=1),
        "silent": np.stack([np.zeros_like(sound), sound], axis=1),
        "eight": np.stack([sound * (channel + 1) / 8 for channel in range(8)], axis=1),
        "offset": sound / 2 + 0.3,
    }.items():
        file = tmp_path / f"{name}.wav"
        soundfile.write(file, samples, 16_000, subtype="FLOAT")
        whole = load_audio(file, 16_000)
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        torch.testing.assert_close(torch.cat(list(Recording.open(file).blocks())), whole, atol=1e-5, rtol=0)
        assert [record.getMessage() for record in caplog.records] == messages
        caplog.clear()


def test_clipping_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", np.clip(20 * _speech(12, 16_000), -1, 1), 16_000)
    Recording.open(tmp_path / "a.wav")
    assert "of the samples are clipped" in caplog.text


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(32_000), 16_000, "is silent"),
        (np.full(32_000, 0.5), 16_000, "is silent"),
        (np.ones(800), 16_000, r"0\.05 s is too short"),
        (np.where(np.arange(320_000) == 300_000, np.nan, 0.1), 16_000, "1 of 320000 samples are not numbers"),
        (np.full(32_000, np.nan), 16_000, "are not numbers"),
        (np.ones(32_000), 2_000, "its rate is 2000 Hz"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, samples: np.ndarray, rate: int, message: str) -> None:
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=message):
        Recording.open(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", streams.OUTPUT_SUFFIXES)
def test_a_sound_is_written_in_blocks(tmp_path: Path, suffix: str) -> None:
    sound = torch.sin(torch.arange(48_000) / 10) / 2
    file = tmp_path / f"a{suffix}"
    before = os.umask(0o027)
    try:
        with SoundWriter(file) as writer:
            for part in sound.split(7000):
                writer.write(part)
            assert not file.exists()
    finally:
        os.umask(before)
    assert writer.samples == 48_000
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o640
    samples, rate = soundfile.read(file)
    assert rate == 24_000
    error = np.abs(samples[: len(sound)] - sound.numpy()[: len(samples)])[1000:-1000].max()
    assert error < (0.05 if suffix in (".mp3", ".ogg") else 1e-4)


def test_an_error_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(b"before")
    with pytest.raises(AudioError), SoundWriter(file) as writer:
        writer.write(torch.zeros(100))
        raise AudioError("in between")
    assert file.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.txt", ConfigError, r"end it with \.wav, \.flac, \.mp3, \.ogg"),
        ("a", ConfigError, "its name says no format"),
        ("missing/a.wav", DiskError, "there is no folder"),
        ("folder.wav", DiskError, "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(error, match=message):
        SoundWriter(tmp_path / name)
