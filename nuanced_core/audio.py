"""Sampling rates and frame sizes, and functions that read, check, resample and write audio."""

from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from nuanced_core.errors import AudioError, DiskError

__all__ = [
    "FRAMES_PER_SECOND",
    "KOKORO_RATE",
    "MIN_PEAK",
    "SAMPLES_PER_FEATURE_FRAME",
    "SAMPLES_PER_FRAME",
    "WHISPER_RATE",
    "load_audio",
    "resample",
    "write_audio",
]

KOKORO_RATE = 24_000  # Hz
SAMPLES_PER_FRAME = 600  # at 24 kHz: a Kokoro frame is 25 ms
FRAMES_PER_SECOND = KOKORO_RATE // SAMPLES_PER_FRAME  # 40
WHISPER_RATE = 16_000  # Hz
SAMPLES_PER_FEATURE_FRAME = 320  # at 16 kHz: a feature frame of Whisper's encoder is 20 ms

MIN_SECONDS = 0.1  # shorter clips are rejected: they are too short to contain speech
MIN_PEAK = 1e-4  # a clip whose largest absolute sample is smaller (-80 dBFS) is silent


def load_audio(path: Path, rate: int = KOKORO_RATE) -> Tensor:
    """Read an audio file as float32 samples (T,) at ``rate`` Hz; channels are averaged.

    Raises:
        AudioError: the file is missing, cannot be read by libsndfile, is shorter than 0.1 s, has samples that are not
            finite, or is silent.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such file; give a WAV, FLAC, OGG or MP3 file")
    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: not a sound file ({error.error_string}); convert it to WAV") from None
    audio = torch.from_numpy(samples.mean(axis=1))
    if len(audio) < MIN_SECONDS * file_rate:
        raise AudioError(f"{path}: {len(audio) / file_rate:.2f} s is too short; at least {MIN_SECONDS} s are needed")
    if not torch.isfinite(audio).all():
        raise AudioError(f"{path}: has samples that are not numbers; export it again")
    if audio.abs().max() < MIN_PEAK:
        raise AudioError(f"{path}: is silent; record it again")
    return resample(audio, file_rate, rate)


def resample(audio: Tensor, source: int, target: int) -> Tensor:
    """Resample audio (…, T) from ``source`` Hz to ``target`` Hz with torchaudio's windowed sinc.

    Returns:
        Audio (…, T * target / source).
    """
    if source == target:
        return audio
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
