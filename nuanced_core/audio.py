"""Sound as arrays: rates and hops with their units; reading, checking, resampling and writing files."""

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
    "QUIETEST",
    "SAMPLES_PER_FEATURE_FRAME",
    "SAMPLES_PER_FRAME",
    "WHISPER_RATE",
    "load_audio",
    "resample",
    "write_audio",
]

KOKORO_RATE = 24_000  # Hz
SAMPLES_PER_FRAME = 600  # of 24 kHz: one Kokoro frame is 25 ms
FRAMES_PER_SECOND = KOKORO_RATE // SAMPLES_PER_FRAME  # 40
WHISPER_RATE = 16_000  # Hz
SAMPLES_PER_FEATURE_FRAME = 320  # of 16 kHz: one feature frame of Whisper's encoder is 20 ms

SHORTEST = 0.1  # seconds of sound that can say anything
QUIETEST = 1e-4  # largest absolute sample (-80 dBFS) below which a clip is called silent


def load_audio(path: Path, rate: int = KOKORO_RATE) -> Tensor:
    """A file's sound as float32 samples (T,) at ``rate`` Hz, its channels averaged.

    Raises:
        AudioError: the file is missing, is no sound that libsndfile reads, is shorter than 0.1 s, or is silent.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such file; give a WAV, FLAC, OGG or MP3 file")
    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: not a sound file ({error.error_string}); convert it to WAV") from None
    audio = torch.from_numpy(samples.mean(axis=1))
    if len(audio) < SHORTEST * file_rate:
        raise AudioError(f"{path}: {len(audio) / file_rate:.2f} s is too short; at least {SHORTEST} s are needed")
    if not torch.isfinite(audio).all():
        raise AudioError(f"{path}: holds samples that are not numbers; export it again")
    if audio.abs().max() < QUIETEST:
        raise AudioError(f"{path}: is silent; record it again")
    return resample(audio, file_rate, rate)


def resample(audio: Tensor, source: int, target: int) -> Tensor:
    """Audio (…, T) at ``source`` Hz as (…, T * target / source) at ``target`` Hz (windowed sinc, torchaudio)."""
    if source == target:
        return audio
    resampled: Tensor = torchaudio.functional.resample(audio, source, target)
    return resampled


def write_audio(path: Path, audio: Tensor, rate: int = KOKORO_RATE) -> None:
    """Write samples (T,) as 16-bit WAV, whole or not at all; louder than full scale is turned down, not clipped.

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
