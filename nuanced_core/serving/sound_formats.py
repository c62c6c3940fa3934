"""Formats of the sound that the server answers with."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE

__all__ = ["SOUND_FORMATS", "SoundFormat", "encode_sound"]


@dataclass(frozen=True)
class SoundFormat:
    """A format: its media type, and libsndfile's names of container and encoding, None for raw samples."""

    media_type: str
    container: str | None = None
    encoding: str | None = None


SOUND_FORMATS = {
    "mp3": SoundFormat("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": SoundFormat("audio/ogg", "OGG", "OPUS"),
    "flac": SoundFormat("audio/flac", "FLAC", "PCM_16"),
    "wav": SoundFormat("audio/wav", "WAV", "PCM_16"),
    "pcm": SoundFormat("audio/pcm"),  # 16 bits, little-endian, 24 kHz, as OpenAI's
}


def encode_sound(audio: Tensor, name: str) -> bytes:
    """Encode samples (T,) at 24 kHz, within [-1, 1], in one of ``SOUND_FORMATS``."""
    chosen = SOUND_FORMATS[name]
    samples = audio.detach().float().cpu().numpy().clip(-1, 1)
    if chosen.container is None:
        return bytes((samples * 32767).round().astype("<i2").tobytes())
    buffer = io.BytesIO()
    soundfile.write(
        buffer, np.ascontiguousarray(samples), KOKORO_RATE, format=chosen.container, subtype=chosen.encoding
    )
    return buffer.getvalue()
