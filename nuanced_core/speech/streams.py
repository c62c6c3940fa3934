"""Recordings of any length read block by block, and sound files written block by block.

Everything that is known of a whole file only (its level, its channels, whether it holds numbers) is found in a first
pass, so that a file of three hours takes no more memory than one of a minute.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import (
    KOKORO_RATE,
    MAX_CLIPPED,
    MAX_OFFSET,
    MAX_PEAK,
    MIN_PEAK,
    MIN_RATE,
    MIN_SECONDS,
    WHISPER_RATE,
    check_scale,
    loudest_channel,
    resample,
)
from nuanced_core.errors import AudioError, ConfigError, DiskError
from nuanced_core.hearing.pitch import HOP
from nuanced_core.sound_files import Samples, sound_blocks
from nuanced_core.speech.packs import check_output

__all__ = ["OUTPUT_SUFFIXES", "Recording", "RecordingReader", "SoundWriter", "check_sound_output"]

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

BLOCK_SECONDS = 10  # a whole number, so that a block begins at a sample of 16 kHz
MARGIN_SECONDS = 1  # on either side of a block that is resampled
LONGEST_CHUNK, SHORTEST_CHUNK = 29.0, 14.0  # seconds
QUIET_FRAMES = 9  # of 25 ms: a pause to cut at is as long
KEPT_SECONDS = 40.0  # before the place that was read last
_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
}
OUTPUT_SUFFIXES = tuple(_FORMATS)
_WRITTEN_AT_ONCE = 1 << 15  # samples; libsndfile's Vorbis encoder keeps what it is given on its stack


@dataclass(frozen=True)
class Recording:
    """A sound file that was checked, and how its channels become one."""

    path: Path
    rate: int  # Hz
    samples: int  # of each channel
    channel: int | None  # the one that is used; None: the mean of all
    offset: Floats  # (channels,) constant offset to remove

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / self.rate

    @classmethod
    def open(cls, path: Path) -> "Recording":
        """Read a file once, and check it as ``load_audio`` does.

        Raises:
            AudioError: as ``load_audio``.
        """
        scan = _Scan()
        for block, rate in sound_blocks(path, BLOCK_SECONDS):
            if rate < MIN_RATE:
                raise AudioError(
                    f"{path}: its rate is {rate} Hz, at which there is no speech; export it again, at 16 kHz"
                )
            scan.add(block, rate)
        return scan.recording(path)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the samples (t,) at 16 kHz, of ``BLOCK_SECONDS`` each; together they are those of the whole file."""
        margin, before = MARGIN_SECONDS * self.rate, torch.zeros(0)
        block: Tensor | None = None
        for samples, _ in sound_blocks(self.path, BLOCK_SECONDS):
            following = self._mono(samples)
            if block is not None:
                yield self._resampled(before, block, following[:margin])
                before = block[-margin:]
            block = following
        if block is not None:
            yield self._resampled(before, block, torch.zeros(0))

    def chunks(self) -> Iterator[Tensor]:
        """Yield the samples at 16 kHz in chunks of at most 29 s that are cut where it is quietest, at whole 25 ms."""
        waiting = torch.zeros(0)
        longest = int(LONGEST_CHUNK * WHISPER_RATE)
        for block in self.blocks():
            waiting = torch.cat([waiting, block])
            while len(waiting) > longest:
                cut = _quietest_place(waiting[:longest])
                yield waiting[:cut]
                waiting = waiting[cut:]
        if len(waiting):
            yield waiting

    def _mono(self, samples: Samples) -> Tensor:
        centred = samples - self.offset.astype(np.float32) if self.offset.any() else samples
        mono = centred.mean(axis=1) if self.channel is None else centred[:, self.channel]
        return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))

    def _resampled(self, before: Tensor, block: Tensor, after: Tensor) -> Tensor:
        wide = resample(torch.cat([before, block, after]), self.rate, WHISPER_RATE)
        first = len(before) * WHISPER_RATE // self.rate
        return wide[first : first + -(-len(block) * WHISPER_RATE // self.rate)]


class _Scan:
    """Statistics of a file, added up block by block."""

    def __init__(self) -> None:
        self.count, self.rate, self.bad, self.clipped = 0, 0, 0, 0
        self.sums: list[Floats] = []  # of each channel and, as the last column, of their mean
        self.squares: list[Floats] = []
        self.lowest: Floats | None = None
        self.highest: Floats | None = None

    def add(self, block: Samples, rate: int) -> None:
        self.rate, self.count = rate, self.count + len(block)
        finite = np.isfinite(block).all(axis=1)
        self.bad += int((~finite).sum())
        # A clipped sample repeats the one before at full scale.
        repeated = (block[1:] == block[:-1]) & (np.abs(block[1:]) >= 0.99)
        self.clipped += int(repeated.any(axis=1).sum())
        columns = np.concatenate([block, block.mean(axis=1, keepdims=True)], axis=1)[finite].astype(np.float64)
        if not len(columns):
            return
        self.sums.append(columns.sum(axis=0))
        self.squares.append(np.square(columns).sum(axis=0))
        low, high = columns.min(axis=0), columns.max(axis=0)
        self.lowest = low if self.lowest is None else np.minimum(self.lowest, low)
        self.highest = high if self.highest is None else np.maximum(self.highest, high)

    def recording(self, path: Path) -> Recording:
        seconds = self.count / self.rate if self.rate else 0.0
        if seconds < MIN_SECONDS:
            raise AudioError(f"{path}: {seconds:.2f} s is too short; at least {MIN_SECONDS} s are needed")
        if self.bad or self.lowest is None or self.highest is None:
            raise AudioError(f"{path}: {self.bad} of {self.count} samples are not numbers; export it again")
        check_scale(path, float(np.maximum(self.highest, -self.lowest)[:-1].max()))
        means = np.sum(self.sums, axis=0) / self.count
        levels = np.sqrt(np.maximum(np.sum(self.squares, axis=0) / self.count - means**2, 0.0))
        peaks = np.maximum(self.highest - means, means - self.lowest)
        self._warn(path)
        channel = loudest_channel(path, levels[:-1], float(levels[-1]))
        if peaks[-1 if channel is None else channel] < MIN_PEAK:
            raise AudioError(f"{path}: is silent; record it again")
        large = (np.abs(means[:-1]) > MAX_OFFSET * peaks[:-1]) & (peaks[:-1] >= MIN_PEAK)
        if large.any():
            worst = float(np.abs(means[:-1][large]).max())
            logger.warning("%s: has a constant offset (DC) of %.3f, which was removed", path, worst)
        return Recording(path, self.rate, self.count, channel, np.where(large, means[:-1], 0.0))

    def _warn(self, path: Path) -> None:
        assert self.lowest is not None and self.highest is not None
        peak = float(max(-self.lowest.min(), self.highest.max()))
        if peak > MAX_PEAK:
            logger.warning(
                "%s: samples reach %.0f times full scale; scale them to [-1, 1] and export it again", path, peak
            )
        elif self.clipped > MAX_CLIPPED * self.count:
            share = 100 * self.clipped / self.count
            logger.warning("%s: %.1f %% of the samples are clipped; record it at a lower level", path, share)


def _quietest_place(samples: Tensor) -> int:
    """Return the sample in the middle of the quietest ``QUIET_FRAMES`` after ``SHORTEST_CHUNK``."""
    frames = len(samples) // HOP
    power = samples[: frames * HOP].reshape(frames, HOP).square().mean(dim=1)
    pauses = power.unfold(0, QUIET_FRAMES, 1).mean(dim=1)
    first = int(SHORTEST_CHUNK * WHISPER_RATE) // HOP
    return (first + int(pauses[first:].argmin()) + QUIET_FRAMES // 2) * HOP


class RecordingReader:
    """Cuts parts of a recording, in rising order, while it is read once."""

    def __init__(self, recording: Recording) -> None:
        self._blocks = recording.blocks()
        self._held = torch.zeros(0)
        self._first = 0  # sample at 16 kHz at which what is held begins

    def part(self, start: float, end: float) -> Tensor:
        """Return the samples at 16 kHz between two times in seconds, as far as there are any.

        A part may begin at most ``KEPT_SECONDS`` before the end of the one before.
        """
        first, last = max(0, round(start * WHISPER_RATE)), round(end * WHISPER_RATE)
        while self._first + len(self._held) < last and (block := next(self._blocks, None)) is not None:
            passed = min(len(self._held), max(0, last - int(KEPT_SECONDS * WHISPER_RATE) - self._first))
            self._held = torch.cat([self._held[passed:], block])
            self._first += passed
        return self._held[max(0, first - self._first) : max(0, last - self._first)]


def check_sound_output(path: Path) -> None:
    """Check that a sound file of this name can be written, before anything long is computed for it.

    Raises:
        ConfigError: its suffix is of no format that can be written.
        DiskError: it is a folder, or its folder is missing or cannot be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"{path}: its name says no format; end it with {', '.join(OUTPUT_SUFFIXES)}")
    check_output(path)


class SoundWriter:
    """Writes mono sound at 24 kHz block by block; the file appears when the context ends without an error.

    Raises:
        ConfigError, DiskError: as ``check_sound_output``, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        check_sound_output(path)
        self._path, self._part = path, path.with_name(f".{path.name}.{os.getpid()}.part")
        self.samples = 0  # written

    def __enter__(self) -> "SoundWriter":
        kind, subtype = _FORMATS[self._path.suffix.lower()]
        try:
            # Python's own mode of a new file is what the umask gives.
            self._file = self._part.open("w+b")
            self._sound = soundfile.SoundFile(
                self._file.fileno(), "w", KOKORO_RATE, 1, subtype, format=kind, closefd=False
            )
        except (OSError, soundfile.LibsndfileError) as error:
            self._part.unlink(missing_ok=True)
            raise DiskError(f"{self._path}: cannot be written: {error}") from None
        return self

    def write(self, audio: Tensor) -> None:
        """Write samples (T,), clipped at full scale."""
        samples = audio.detach().float().cpu().clamp(-1, 1).numpy()
        try:
            for start in range(0, len(samples), _WRITTEN_AT_ONCE):
                self._sound.write(samples[start : start + _WRITTEN_AT_ONCE])
        except (OSError, soundfile.LibsndfileError) as error:
            raise DiskError(f"{self._path}: cannot be written: {error}; free some disk") from None
        self.samples += len(samples)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sound.close()
            self._file.close()
            if error is None:
                self._part.replace(self._path)
        except (OSError, soundfile.LibsndfileError) as problem:
            if error is None:
                raise DiskError(f"{self._path}: cannot be written: {problem}") from None
        finally:
            self._part.unlink(missing_ok=True)
