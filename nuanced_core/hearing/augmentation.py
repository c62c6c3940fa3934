"""Augmentation of clean clips: room reverberation, equaliser, band limit, noise, codec and level.

Speech rendered by Kokoro has none of these, and an encoder trained without them fails on recordings of people.
"""

import io
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import numpy as np
import soundfile
import torch
import torchaudio.functional
from numpy.typing import NDArray
from torch import Tensor

from nuanced_core.config.settings import Augment, Condition
from nuanced_core.errors import ConfigError

__all__ = ["DEGRADATIONS", "augmented", "degraded"]

# The fixed conditions under which held-out clips are evaluated.
DEGRADATIONS: tuple[Condition, ...] = tuple(kind for kind in get_args(Condition) if kind != "clean")

Samples = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
D = TypeVar("D", float, Floats)
Response = Callable[[Floats], Floats]  # Hz → gain

TELEPHONE = (300.0, 3400.0)  # Hz, ITU-T G.712
TELEPHONE_EDGE = 0.1  # octaves
ROOM_RT60 = 0.3  # seconds, in degraded()
ROOM_DIRECT_DB = 3.0  # direct-to-reverberant ratio in degraded()
DEGRADED_STREAM = 1  # part of the seeds of degraded(), so that it draws other numbers than augmented()

EQUALISER_LOWEST = 60.0  # Hz, the lowest band; one band per octave
FILTER_TAIL = 0.25  # seconds after which a filter's response has decayed
MU_LAW_LEVELS = 256
VORBIS_LEVELS = (0.3, 1.0)  # libsndfile's compression levels, 1 is the strongest: 48 to 28 kb/s at 16 kHz
MP3_LEVELS = (0.0, 0.8)  # 50 to 27 kb/s at 16 kHz; above 0.8 LAME resamples, which shifts the clip
# Opus is left out: libsndfile encodes it at full complexity, several times slower than all other steps together.


def augmented(audio: Tensor, rate: int, settings: Augment, seed: int) -> Tensor:
    """Apply random augmentations to audio (samples,) at ``rate`` Hz.

    The steps are room, equaliser, band limit, noise, codec and level, in this order; a step that ``settings`` turn off
    leaves the samples unchanged. The signal-to-noise ratio refers to the mean power of the whole clip. Returns float32
    audio of the same length, without delay and within full scale. The same seed gives the same samples; global random
    generators are not used.
    """
    rng = np.random.default_rng(seed)
    sound = audio.detach().float().cpu().numpy()
    if rng.random() < settings.reverb:
        sound = _add_reverberation(
            sound, _random_room(rng, rate, rt60=rng.uniform(0.1, 0.8), direct_db=rng.uniform(-3, 15))
        )
    if settings.equaliser_db:
        sound = _apply_filter(sound, rate, _random_equaliser(rng, rate, settings.equaliser_db))
    if rng.random() < settings.band_limit:
        sound = _apply_filter(sound, rate, _random_band_pass(rng))
    if rng.random() < settings.noise:
        sound = _add_noise(sound, _random_noise(rng, len(sound), rate), rng.uniform(*settings.snr_db))
    if rng.random() < settings.codec:
        sound = _apply_random_codec(rng, sound, rate)
    if settings.gain_db:
        sound = sound * _amplitude_ratio(rng.uniform(-settings.gain_db, settings.gain_db))
    return torch.from_numpy(_limit_peak(sound).astype(np.float32))


def degraded(audio: Tensor, rate: int, kind: str, seed: int) -> Tensor:
    """Apply one of the fixed conditions ``DEGRADATIONS`` to audio (samples,) at ``rate`` Hz.

    - ``snr20``, ``snr10``: steady noise with the spectrum of speech, 20 or 10 dB below the clip's mean power.
    - ``telephone``: band from 300 to 3400 Hz.
    - ``room``: RT60 of 0.3 s, direct sound 3 dB above the reverberation.

    Returns float32 audio of the same length. It may exceed full scale, so that the ratio of clip to noise is exact. The
    same seed gives the same samples.

    Raises:
        ConfigError: the condition is unknown.
    """
    if kind not in DEGRADATIONS:
        raise ConfigError(f"condition {kind!r}: unknown; choose one of: {', '.join(DEGRADATIONS)}")
    rng = np.random.default_rng([DEGRADED_STREAM, DEGRADATIONS.index(kind), seed])
    sound = audio.detach().float().cpu().numpy()
    if kind == "telephone":
        sound = _apply_filter(sound, rate, _band_pass(*TELEPHONE, TELEPHONE_EDGE))
    elif kind == "room":
        sound = _add_reverberation(sound, _random_room(rng, rate, ROOM_RT60, ROOM_DIRECT_DB))
    else:
        noise = _colour_noise(rng.standard_normal(len(sound), dtype=np.float32), rate, -9, corner=500)
        sound = _add_noise(sound, noise, float(kind.removeprefix("snr")))
    return torch.from_numpy(sound)


def _random_room(rng: np.random.Generator, rate: int, rt60: float, direct_db: float) -> Samples:
    """Draw a room impulse response: direct sound, early reflections, and noise that decays by 60 dB in ``rt60`` s.

    The noise decays as in a diffuse field (Polack 1988), with less treble, which walls and air absorb.
    """
    time = np.arange(1, int(rt60 * rate)) / rate
    tail = _colour_noise(rng.standard_normal(len(time), dtype=np.float32), rate, rng.uniform(-3, 0), corner=200)
    first = rng.uniform(0.001, 0.01)  # seconds from the direct sound to the first reflection
    early = (rng.uniform(first, first + 0.03, size=rng.integers(3, 9)) * rate).astype(int)
    tail[: int(first * rate)] = 0
    tail[early[early < len(tail)]] += rng.uniform(-4, 4, size=np.count_nonzero(early < len(tail)))
    tail *= 10 ** (-3 * time / rt60)
    tail *= _amplitude_ratio(-direct_db) / np.sqrt(np.square(tail).sum())
    return np.concatenate([[1.0], tail]).astype(np.float32)


def _add_reverberation(sound: Samples, response: Samples) -> Samples:
    """Convolve with an impulse response, keeping length and loudness."""
    n = _fft_length(len(sound) + len(response))
    wet: Samples = np.fft.irfft(np.fft.rfft(sound, n) * np.fft.rfft(response, n), n)[: len(sound)].astype(np.float32)
    wet *= _rms(sound) / _rms(wet)
    return wet


def _apply_filter(sound: Samples, rate: int, response: Response) -> Samples:
    """Apply a zero-phase filter, which causes no delay."""
    n = _fft_length(len(sound) + int(FILTER_TAIL * rate))
    gain = response(np.fft.rfftfreq(n, 1 / rate)).astype(np.float32)
    filtered: Samples = np.fft.irfft(np.fft.rfft(sound, n) * gain, n)[: len(sound)].astype(np.float32)
    return filtered


def _random_equaliser(rng: np.random.Generator, rate: int, max_db: float) -> Response:
    """Draw a smooth frequency response through a random gain of at most ``max_db`` dB per octave band."""
    bands = int(np.log2(rate / 2 / EQUALISER_LOWEST)) + 2
    gains_db = rng.uniform(-max_db, max_db, size=bands)

    def gain(hertz: Floats) -> Floats:
        octaves = np.log2(np.maximum(hertz, EQUALISER_LOWEST) / EQUALISER_LOWEST)
        below = np.floor(octaves)
        part = octaves - below
        return _amplitude_ratio(np.interp(below + part**2 * (3 - 2 * part), np.arange(bands), gains_db))

    return gain


def _band_pass(low: float, high: float, edge: float) -> Response:
    """Make a band-pass: gain 0 below ``low`` and above ``high`` Hz, gain 1 from ``edge`` octaves inside of these."""

    def gain(hertz: Floats) -> Floats:
        octaves = np.log2(np.maximum(hertz, 1.0))
        inside = np.minimum(octaves - np.log2(low), np.log2(high) - octaves)
        passed: Floats = np.sin(np.pi / 2 * np.clip(inside / edge, 0, 1)) ** 2
        return passed

    return gain


def _random_band_pass(rng: np.random.Generator) -> Response:
    if rng.random() < 0.25:
        return _band_pass(*TELEPHONE, TELEPHONE_EDGE)
    low, high = np.exp(rng.uniform(np.log((50, 2800)), np.log((400, 7500))))
    return _band_pass(low, high, rng.uniform(0.1, 1.0))


def _random_noise(rng: np.random.Generator, samples: int, rate: int) -> Samples:
    """Draw steady noise of random colour, mains hum, or babble of other voices; its level is arbitrary."""
    white = rng.standard_normal(samples, dtype=np.float32)
    kind = rng.choice(["steady", "hum", "babble"], p=[0.5, 0.15, 0.35])
    if kind == "babble":
        return _colour_noise(white * _babble_envelope(rng, samples, rate), rate, rng.uniform(-12, -6), corner=500)
    steady = _colour_noise(white, rate, rng.uniform(-6, 0), corner=50)  # brown noise is -6, pink -3, white 0
    if kind == "steady":
        return steady
    time = np.arange(samples) / rate
    mains = rng.choice([50.0, 60.0])  # Hz
    hum = sum(
        rng.uniform(0, 1 / harmonic) * np.sin(2 * np.pi * (harmonic * mains * time + rng.random()))
        for harmonic in range(1, 13)
    )
    mixed: Samples = (hum / _rms(hum) + steady / _rms(steady) * rng.uniform(0.1, 1)).astype(np.float32)
    return mixed


def _babble_envelope(rng: np.random.Generator, samples: int, rate: int) -> Samples:
    """Draw the envelope of babble: a few talkers with random loudness and four syllables per second each."""
    points = int(samples / rate * 4) + 2
    talkers = rng.integers(1, 6)
    power = rng.gamma(0.5, size=(points, talkers)).mean(axis=1)  # loud syllables and pauses, steadier with more talkers
    position = np.arange(samples) / rate * 4 + rng.random() * 0.5
    envelope: Samples = np.sqrt(np.interp(position, np.arange(points), power) + 1e-3).astype(np.float32)
    return envelope


def _colour_noise(white: Samples, rate: int, slope_db: float, corner: float) -> Samples:
    """Filter white noise to a spectrum flat up to ``corner`` Hz and changing by ``slope_db`` per octave above."""

    def gain(hertz: Floats) -> Floats:
        return _amplitude_ratio(slope_db * np.log2(np.maximum(hertz / corner, 1)))

    return _apply_filter(white, rate, gain)


def _add_noise(sound: Samples, noise: Samples, snr_db: float) -> Samples:
    """Add noise at a signal-to-noise ratio in dB; ``noise`` is scaled in place."""
    noise *= _rms(sound) / _rms(noise) * _amplitude_ratio(-snr_db)
    return sound + noise


def _apply_random_codec(rng: np.random.Generator, sound: Samples, rate: int) -> Samples:
    """Encode and decode with a random lossy codec: 8-bit μ-law, Vorbis or MP3."""
    peak = max(1.0, float(np.abs(sound).max()))
    codec = rng.choice(["mu-law", "vorbis", "mp3"])
    if codec == "mu-law":
        codes = torchaudio.functional.mu_law_encoding(torch.from_numpy(sound / peak), MU_LAW_LEVELS)
        decoded: Samples = torchaudio.functional.mu_law_decoding(codes, MU_LAW_LEVELS).numpy()
    elif codec == "vorbis":
        decoded = _encode_and_decode(sound / peak, rate, "OGG", "VORBIS", None, rng.uniform(*VORBIS_LEVELS))
    else:
        decoded = _encode_and_decode(sound / peak, rate, "MP3", "MPEG_LAYER_III", "VARIABLE", rng.uniform(*MP3_LEVELS))
    decoded *= peak
    return decoded


def _encode_and_decode(
    sound: Samples, rate: int, file_format: str, subtype: str, bitrate_mode: str | None, compression: float
) -> Samples:
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer,
        "w",
        rate,
        channels=1,
        subtype=subtype,
        format=file_format,
        compression_level=compression,
        bitrate_mode=bitrate_mode,
    ) as file:
        for start in range(0, len(sound), rate):  # libsndfile's Vorbis encoder overflows its stack on long blocks
            file.write(sound[start : start + rate])
    buffer.seek(0)
    decoded: Samples = soundfile.read(buffer, dtype="float32")[0][: len(sound)]
    return np.pad(decoded, (0, len(sound) - len(decoded)))


def _limit_peak(sound: Samples) -> Samples:
    """Scale the sound down to full scale if it exceeds that."""
    return sound / max(1.0, float(np.abs(sound).max()))


def _rms(sound: Floats) -> float:
    """Return the root mean square, at least 1e-12."""
    return max(float(np.sqrt(np.square(sound, dtype=np.float64).mean())), 1e-12)


def _amplitude_ratio(decibels: D) -> D:
    """Convert a level difference in dB to an amplitude ratio."""
    ratio: D = 10 ** (decibels / 20)
    return ratio


def _fft_length(samples: int) -> int:
    return 1 << (samples - 1).bit_length()
