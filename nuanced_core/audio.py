"""Sampling rates and frame sizes, and functions that load, check, resample and write audio."""

import logging
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from nuanced_core.errors import AudioError, DiskError
from nuanced_core.sound_files import read_sound, sound_blocks

__all__ = [
    "FRAMES_PER_SECOND",
    "KOKORO_RATE",
    "LARGEST_PEAK",
    "MAX_CLIPPED",
    "MAX_OFFSET",
    "MAX_PEAK",
    "MIN_PEAK",
    "MIN_RATE",
    "MIN_SECONDS",
    "SAMPLES_PER_FEATURE_FRAME",
    "SAMPLES_PER_FRAME",
    "SOUND_FORMATS",
    "WHISPER_RATE",
    "check_scale",
    "is_silent",
    "load_audio",
    "loudest_channel",
    "resample",
    "sound_format",
    "sound_writer",
    "wav_stream",
    "write_audio",
]

logger = logging.getLogger(__name__)

KOKORO_RATE = 24_000  # Hz
SAMPLES_PER_FRAME = 600  # at 24 kHz: a Kokoro frame is 25 ms
FRAMES_PER_SECOND = KOKORO_RATE // SAMPLES_PER_FRAME  # 40
WHISPER_RATE = 16_000  # Hz
SAMPLES_PER_FEATURE_FRAME = 320  # at 16 kHz: a feature frame of Whisper's encoder is 20 ms

MIN_RATE = 4_000  # Hz; below it, most of speech is missing, and the header is more likely to be wrong
MIN_SECONDS = 0.1  # shorter clips are rejected: they are too short to contain speech
MIN_PEAK = 1e-4  # a clip whose samples differ less from their mean (-80 dBFS) is silent
# The mean of channels is used unless its level is below this fraction of the loudest channel's: then that one is used.
# The mean of one speaking and one silent channel has 0.5, of equally loud channels with nothing in common 0.71.
MIN_MEAN_LEVEL = 0.6
MAX_OFFSET = 0.1  # of the peak; a larger constant offset (DC) is removed
MAX_CLIPPED = 0.001  # fraction of samples that repeat the one before at full scale; more is reported
MAX_PEAK = 2.0  # relative to full scale; more is reported: floating-point samples were probably not scaled
LARGEST_PEAK = 1e12  # relative to full scale; more is refused: integers of 32 bits that were not scaled have 2e9
# torchaudio's kernel has this many values per sample of overlap: at odd ratios such as 24001:16000 it takes gigabytes.
_MAX_KERNEL = 10_000_000
_BLOCK = 1 << 16  # samples of each channel that are in float64 at once
_READ_SECONDS = 10.0  # that are decoded at once of a long file

# Formats that are written, by the ending of a name: libsndfile's format and subtype.
SOUND_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_UNKNOWN_SIZE = 0xFFFFFFFF  # in the header of a WAV stream; players then read to its end

Samples = npt.NDArray[np.float32]
WriteSamples = Callable[[Tensor], None]  # audio (samples,)


def load_audio(path: Path, rate: int = KOKORO_RATE, seconds: float | None = None) -> Tensor:
    """Load a sound file as float32 samples (T,) at ``rate`` Hz.

    All formats of libsndfile are read (WAV, FLAC, OGG, Opus, MP3, AIFF, AU, CAF, …), others if the program ffmpeg is
    installed. Channels are averaged; if they cancel each other out, or some are silent, the loudest one is used
    instead. That, a file that is cut off, clipped samples and a constant offset, which is removed, are logged as
    warnings.

    Args:
        seconds: how much of the beginning is read of a longer file, so that memory does not grow with its length;
            None: all of it.

    Raises:
        AudioError: the file is missing, cannot be read, is shorter than 0.1 s, has a rate below 4 kHz or samples that
            are not finite or of no scale, or is silent.
    """
    path = Path(path)
    samples, file_rate = read_sound(path) if seconds is None else _read_beginning(path, seconds)
    if file_rate < MIN_RATE:
        raise AudioError(f"{path}: its rate is {file_rate} Hz, at which there is no speech; export it again, at 16 kHz")
    if len(samples) < MIN_SECONDS * file_rate:
        raise AudioError(f"{path}: {len(samples) / file_rate:.2f} s is too short; at least {MIN_SECONDS} s are needed")
    if not np.isfinite(samples).all():
        count = int((~np.isfinite(samples)).any(axis=1).sum())
        raise AudioError(f"{path}: {count} of {len(samples)} samples are not numbers; export it again")
    check_scale(path, _peak(samples))
    _warn_of_clipping(path, samples)
    audio = torch.from_numpy(_mono(path, _without_offset(path, samples)))
    del samples  # which may take more memory than all that follows
    if is_silent(audio):
        raise AudioError(f"{path}: is silent; record it again")
    return resample(audio, file_rate, rate)


def _read_beginning(path: Path, seconds: float) -> tuple[Samples, int]:
    """Read a sound file as ``read_sound``, and of one that is longer only some seconds."""
    try:
        with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            if 0 < sound.frames <= seconds * sound.samplerate:
                return read_sound(path)
    except (OSError, soundfile.LibsndfileError):
        pass  # of what only ffmpeg reads, the length is not known; errors are those of sound_blocks
    blocks: list[Samples] = []
    rate = 0
    for block, rate in sound_blocks(path, _READ_SECONDS):
        missing = round(seconds * rate) - sum(map(len, blocks))
        blocks.append(block[:missing])
        if len(block) >= missing:
            break
    return (np.concatenate(blocks), rate) if blocks else read_sound(path)


def check_scale(path: Path, peak: float) -> None:
    """Check that sums and squares of samples with this peak are finite in float32.

    Raises:
        AudioError: the peak is above ``LARGEST_PEAK``.
    """
    if peak > LARGEST_PEAK:
        raise AudioError(
            f"{path}: samples reach {peak:.0e} times full scale; scale them to [-1, 1] and export it again"
        )


def is_silent(audio: Tensor) -> bool:
    """Return whether audio (T,) has no sample that differs from the mean by more than -80 dBFS."""
    return float((audio - audio.mean()).abs().max()) < MIN_PEAK


def resample(audio: Tensor, source: int, target: int) -> Tensor:
    """Resample audio (…, T) from ``source`` Hz to ``target`` Hz.

    torchaudio's windowed sinc is used, or SciPy's polyphase filter for ratios that would take it gigabytes of memory.

    Returns:
        Audio (…, T * target / source).
    """
    if source == target:
        return audio
    common = math.gcd(source, target)
    if (source // common) * (target // common) > _MAX_KERNEL:
        from scipy.signal import resample_poly  # type: ignore[import-untyped]

        found = resample_poly(audio.detach().cpu().numpy(), target // common, source // common, axis=-1)
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)).to(audio)
    resampled: Tensor = torchaudio.functional.resample(audio, source, target)
    return resampled


def write_audio(path: Path, audio: Tensor, rate: int = KOKORO_RATE) -> None:
    """Write samples (T,) atomically as a 16-bit WAV file.

    Audio louder than full scale is scaled down to it, not clipped.

    Raises:
        DiskError: the file cannot be written.
    """
    samples = audio.detach().float().cpu().numpy()
    peak = float(np.abs(samples).max(initial=0.0))
    part = path.with_name(path.name + ".part")
    try:
        soundfile.write(part, samples / max(1.0, peak), rate, format="WAV", subtype="PCM_16")
        part.replace(path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise DiskError(f"{path}: cannot be written: {error}") from None


def sound_format(path: Path) -> tuple[str, str]:
    """Return libsndfile's format and subtype for the name of a file to be written.

    Raises:
        AudioError: its ending is that of no format that is written.
    """
    if path.suffix.lower() not in SOUND_FORMATS:
        raise AudioError(f"{path}: its name says no format; end it with {', '.join(SOUND_FORMATS)}")
    return SOUND_FORMATS[path.suffix.lower()]


@contextmanager
def sound_writer(path: Path, rate: int = KOKORO_RATE) -> Iterator[WriteSamples]:
    """Write a sound file block by block: yields the function that appends audio (samples,).

    The file appears under its name when the context ends, and not at all if it ends with an exception. Samples beyond
    full scale are clipped.

    Raises:
        AudioError: the ending of the name is that of no format, see ``SOUND_FORMATS``.
        DiskError: the file cannot be written.
    """
    name, subtype = sound_format(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with soundfile.SoundFile(part, "w", rate, 1, subtype, format=name) as file:
            yield lambda audio: file.write(_limited(audio))
        part.replace(path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise DiskError(f"{path}: cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def wav_stream(file: BinaryIO, rate: int = KOKORO_RATE) -> WriteSamples:
    """Write the header of a 16-bit mono WAV stream of unknown length; return what appends audio (samples,) to it.

    What is appended is flushed, so that a player at the other end of a pipe can begin.
    """
    sizes = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    file.write(struct.pack("<4sI4s4s", b"RIFF", _UNKNOWN_SIZE, b"WAVE", b"fmt ") + sizes)
    file.write(struct.pack("<4sI", b"data", _UNKNOWN_SIZE))

    def write(audio: Tensor) -> None:
        file.write((_limited(audio) * 32767).round().astype("<i2").tobytes())
        file.flush()

    return write


def _limited(audio: Tensor) -> Samples:
    limited: Samples = audio.detach().float().cpu().clamp(-1, 1).numpy()
    return limited


def _peak(samples: Samples) -> float:
    return float(max(samples.max(), -samples.min()))


def _warn_of_clipping(path: Path, samples: Samples) -> None:
    peak = _peak(samples)
    if peak > MAX_PEAK:
        logger.warning("%s: samples reach %.0f times full scale; scale them to [-1, 1] and export it again", path, peak)
    elif peak >= 0.99:
        extreme = (samples == samples.max()) | (samples == samples.min())
        clipped = float((extreme[1:] & extreme[:-1]).mean())
        if clipped > MAX_CLIPPED:
            logger.warning("%s: %.1f %% of the samples are clipped; record it at a lower level", path, 100 * clipped)


def _without_offset(path: Path, samples: Samples) -> Samples:
    """Remove a large constant offset from each channel of samples (T, channels), in place."""
    offset = samples.mean(axis=0, dtype=np.float64)
    peak = np.maximum(samples.max(axis=0) - offset, offset - samples.min(axis=0))
    large = (np.abs(offset) > MAX_OFFSET * peak) & (peak >= MIN_PEAK)
    if not large.any():
        return samples
    worst = float(np.abs(offset[large]).max())
    logger.warning("%s: has a constant offset (DC) of %.3f, which was removed", path, worst)
    # Computed in float64, but for a few samples at a time.
    return np.subtract(samples, np.where(large, offset, 0.0), out=samples, casting="same_kind")


def _mono(path: Path, samples: Samples) -> Samples:
    """Return samples (T,) of samples (T, channels): the mean, or the loudest channel where the mean loses level."""
    mean: Samples = samples.mean(axis=1)
    level = float(_levels(mean[:, None])[0])
    channel = loudest_channel(path, _levels(samples), level)
    return mean if channel is None else np.ascontiguousarray(samples[:, channel])


def _levels(samples: Samples) -> npt.NDArray[np.float64]:
    """Return the standard deviations (channels,) of samples (T, channels), without a copy of them in float64."""
    mean = samples.mean(axis=0, dtype=np.float64)
    blocks = range(0, len(samples), _BLOCK)
    squares = [np.square(samples[start : start + _BLOCK] - mean).sum(axis=0) for start in blocks]
    levels: npt.NDArray[np.float64] = np.sqrt(np.sum(squares, axis=0) / len(samples))
    return levels


def loudest_channel(path: Path, levels: npt.NDArray[np.float64], level: float) -> int | None:
    """Return the channel to use instead of the mean of all where that loses level, with a warning; None: the mean.

    Args:
        path: of the file, for the warning.
        levels: (channels,) standard deviation of each channel.
        level: that of their mean.
    """
    loudest = int(levels.argmax())
    if levels[loudest] == 0 or level >= MIN_MEAN_LEVEL * levels[loudest]:
        return None
    if silent := [str(channel + 1) for channel, own in enumerate(levels) if own < 0.01 * levels[loudest]]:
        reason = f"of its {len(levels)} channels, {', '.join(silent)} {'is' if len(silent) == 1 else 'are'} silent"
    else:
        quieter = 20 * math.log10(levels[loudest] / max(level, 1e-6 * levels[loudest]))
        # The mean of channels with nothing in common has this level.
        cancel = level < 0.9 * float(np.sqrt(np.square(levels).sum())) / len(levels)
        relation = "cancel each other out" if cancel else "differ in level"
        reason = f"its {len(levels)} channels {relation}: their mean is {quieter:.0f} dB quieter than one"
    logger.warning("%s: %s; channel %d was used instead of the mean", path, reason, loudest + 1)
    return loudest
