"""Sounds in the formats of the API, read again."""

import io

import numpy as np
import pytest
import soundfile
import torch

from nuanced_core.serving.sound_formats import SOUND_FORMATS, encode_sound

SOUND = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(24_000) / 24_000)


@pytest.mark.parametrize(
    ("name", "container", "tolerance"),
    [("wav", "WAV", 1e-4), ("flac", "FLAC", 1e-4), ("mp3", "MP3", 0.05), ("opus", "OGG", 0.05)],
)
def test_a_sound_is_the_same_when_it_is_read(name: str, container: str, tolerance: float) -> None:
    data = encode_sound(SOUND, name)
    assert soundfile.info(io.BytesIO(data)).format == container
    samples, rate = soundfile.read(io.BytesIO(data))
    assert abs(len(samples) / rate - 1) < 0.1
    found, expected = np.abs(np.fft.rfft(samples[: rate // 2])), 440
    assert abs(found.argmax() * 2 - expected) <= 2
    assert abs(np.abs(samples[rate // 4 : rate // 2]).max() - 0.5) < tolerance


def test_pcm_is_16_bits_little_endian_without_header_and_clipped() -> None:
    assert encode_sound(torch.tensor([0.0, 1.0, -1.0, 2.0]), "pcm") == b"\x00\x00\xff\x7f\x01\x80\xff\x7f"
    assert SOUND_FORMATS["pcm"].media_type == "audio/pcm"
