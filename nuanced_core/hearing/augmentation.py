"""A clean clip as a recording of a person would have it: room, equaliser, band, noise, codec, level.

Kokoro's own speech has none of these, and an encoder that never heard them does not work on people.
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

# Fixed conditions of held-out clips.
DEGRADATIONS: tuple[Condition, ...] = tuple(kind for kind in get_args(Condition) if kind != "clean")

Samples = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
D = TypeVar("D", float, Floats)
Response = Callable[[Floats], Floats]  # Hz → gain

TELEPHONE = (300.0, 3400.0)  # Hz, ITU-T G.712
TELEPHONE_EDGE = 0.1  # octaves
ROOM_RT60 = 0.3  # seconds, of degraded()
ROOM_DIRECT_DB = 3.0  # direct-to-reverberant ratio of degraded()
MEASURED = 1  # keeps the draws of degraded() apart from those of augmented(), whose seed stands alone

EQUALISER_LOWEST = 60.0  # Hz, one band an octave from here
FILTER_TAIL = 0.25  # seconds in which a filter's response has died away
MU_LAW_LEVELS = 256
VORBIS_LEVELS = (0.3, 1.0)  # libsndfile's compression levels: 1 is the least bits, 48 to 28 kb/s at 16 kHz
MP3_LEVELS = (0.0, 0.8)  # 50 to 27 kb/s at 16 kHz; above it LAME resamples and the clip comes back shifted
# Opus is left out: libsndfile encodes it at full complexity, which takes several times as long as all of the rest.


def augmented(audio: Tensor, rate: int, settings: Augment, seed: int) -> Tensor:
    """Audio (samples,) at ``rate`` Hz, float32, as one random recording of it, of the same length and not delayed.

    In this order: room, equaliser, band limit, noise, codec, level. What ``settings`` turn off leaves the samples as
    they are. Noise is set against the mean power of the whole clip; nothing is louder than full scale. The same seed
    gives the same samples, and no other random numbers are touched.
    """
    rng = np.random.default_rng(seed)
    sound = audio.detach().float().cpu().numpy()
    if rng.random() < settings.reverb:
        sound = _in_room(sound, _room(rng, rate, rt60=rng.uniform(0.1, 0.8), direct_db=rng.uniform(-3, 15)))
    if settings.equaliser_db:
        sound = _filtered(sound, rate, _equaliser(rng, rate, settings.equaliser_db))
    if rng.random() < settings.band_limit:
        sound = _filtered(sound, rate, _random_band(rng))
    if rng.random() < settings.noise:
        sound = _with_noise(sound, _noise(rng, len(sound), rate), rng.uniform(*settings.snr_db))
    if rng.random() < settings.codec:
        sound = _decoded(rng, sound, rate)
    if settings.gain_db:
        sound = sound * _ratio(rng.uniform(-settings.gain_db, settings.gain_db))
    return torch.from_numpy(_within_full_scale(sound).astype(np.float32))


def degraded(audio: Tensor, rate: int, kind: str, seed: int) -> Tensor:
    """Audio (samples,) at ``rate`` Hz in one of the fixed conditions ``DEGRADATIONS``, float32, of the same length.

    ``snr20`` and ``snr10``: steady noise with the spectrum of speech, 20 or 10 dB below the clip's mean power;
    ``telephone``: 300 to 3400 Hz; ``room``: RT60 of 0.3 s, direct sound 3 dB above the reverberation. Full scale is
    not kept, so that noise and clip stay in proportion. The same seed gives the same samples.

    Raises:
        ConfigError: there is no such condition.
    """
    if kind not in DEGRADATIONS:
        raise ConfigError(f"condition {kind!r}: unknown; there are: {', '.join(DEGRADATIONS)}")
    rng = np.random.default_rng([MEASURED, DEGRADATIONS.index(kind), seed])
    sound = audio.detach().float().cpu().numpy()
    if kind == "telephone":
        sound = _filtered(sound, rate, _band(*TELEPHONE, TELEPHONE_EDGE))
    elif kind == "room":
        sound = _in_room(sound, _room(rng, rate, ROOM_RT60, ROOM_DIRECT_DB))
    else:
        noise = _coloured(rng.standard_normal(len(sound), dtype=np.float32), rate, -9, corner=500)
        sound = _with_noise(sound, noise, float(kind.removeprefix("snr")))
    return torch.from_numpy(sound)


def _room(rng: np.random.Generator, rate: int, rt60: float, direct_db: float) -> Samples:
    """An impulse response: direct sound first, then early reflections in noise that decays 60 dB in ``rt60`` s.

    The noise decays as in a diffuse field (Polack 1988) and loses treble as walls and air take it.
    """
    time = np.arange(1, int(rt60 * rate)) / rate
    tail = _coloured(rng.standard_normal(len(time), dtype=np.float32), rate, rng.uniform(-3, 0), corner=200)
    first = rng.uniform(0.001, 0.01)  # seconds from the direct sound to the first wall's echo
    early = (rng.uniform(first, first + 0.03, size=rng.integers(3, 9)) * rate).astype(int)
    tail[: int(first * rate)] = 0
    tail[early[early < len(tail)]] += rng.uniform(-4, 4, size=np.count_nonzero(early < len(tail)))
    tail *= 10 ** (-3 * time / rt60)
    tail *= _ratio(-direct_db) / np.sqrt(np.square(tail).sum())
    return np.concatenate([[1.0], tail]).astype(np.float32)


def _in_room(sound: Samples, response: Samples) -> Samples:
    """The sound in a room, as loud as before."""
    n = _fast_length(len(sound) + len(response))
    wet: Samples = np.fft.irfft(np.fft.rfft(sound, n) * np.fft.rfft(response, n), n)[: len(sound)].astype(np.float32)
    wet *= _level(sound) / _level(wet)
    return wet


def _filtered(sound: Samples, rate: int, response: Response) -> Samples:
    """The sound through a filter of zero phase, which moves nothing in time."""
    n = _fast_length(len(sound) + int(FILTER_TAIL * rate))
    gain = response(np.fft.rfftfreq(n, 1 / rate)).astype(np.float32)
    filtered: Samples = np.fft.irfft(np.fft.rfft(sound, n) * gain, n)[: len(sound)].astype(np.float32)
    return filtered


def _equaliser(rng: np.random.Generator, rate: int, most_db: float) -> Response:
    """A smooth curve through a random gain in each octave."""
    bands = int(np.log2(rate / 2 / EQUALISER_LOWEST)) + 2
    gains_db = rng.uniform(-most_db, most_db, size=bands)

    def gain(hertz: Floats) -> Floats:
        octaves = np.log2(np.maximum(hertz, EQUALISER_LOWEST) / EQUALISER_LOWEST)
        below = np.floor(octaves)
        part = octaves - below
        return _ratio(np.interp(below + part**2 * (3 - 2 * part), np.arange(bands), gains_db))

    return gain


def _band(low: float, high: float, edge: float) -> Response:
    """Nothing passes below ``low`` and above ``high`` Hz, all passes ``edge`` octaves inside."""

    def gain(hertz: Floats) -> Floats:
        octaves = np.log2(np.maximum(hertz, 1.0))
        inside = np.minimum(octaves - np.log2(low), np.log2(high) - octaves)
        passed: Floats = np.sin(np.pi / 2 * np.clip(inside / edge, 0, 1)) ** 2
        return passed

    return gain


def _random_band(rng: np.random.Generator) -> Response:
    if rng.random() < 0.25:
        return _band(*TELEPHONE, TELEPHONE_EDGE)
    low, high = np.exp(rng.uniform(np.log((50, 2800)), np.log((400, 7500))))
    return _band(low, high, rng.uniform(0.1, 1.0))


def _noise(rng: np.random.Generator, samples: int, rate: int) -> Samples:
    """Steady noise of any colour, mains hum, or the voices of others; of any level."""
    white = rng.standard_normal(samples, dtype=np.float32)
    kind = rng.choice(["steady", "hum", "babble"], p=[0.5, 0.15, 0.35])
    if kind == "babble":
        return _coloured(white * _syllables(rng, samples, rate), rate, rng.uniform(-12, -6), corner=500)
    steady = _coloured(white, rate, rng.uniform(-6, 0), corner=50)  # brown is -6, pink -3, white 0
    if kind == "steady":
        return steady
    time = np.arange(samples) / rate
    mains = rng.choice([50.0, 60.0])  # Hz
    hum = sum(
        rng.uniform(0, 1 / harmonic) * np.sin(2 * np.pi * (harmonic * mains * time + rng.random()))
        for harmonic in range(1, 13)
    )
    mixed: Samples = (hum / _level(hum) + steady / _level(steady) * rng.uniform(0.1, 1)).astype(np.float32)
    return mixed


def _syllables(rng: np.random.Generator, samples: int, rate: int) -> Samples:
    """The envelope of a few people who talk at once: random loudness, four syllables a second each."""
    knots = int(samples / rate * 4) + 2
    talkers = rng.integers(1, 6)
    power = rng.gamma(0.5, size=(knots, talkers)).mean(axis=1)  # strong and pausing, the steadier the more talk
    place = np.arange(samples) / rate * 4 + rng.random() * 0.5
    envelope: Samples = np.sqrt(np.interp(place, np.arange(knots), power) + 1e-3).astype(np.float32)
    return envelope


def _coloured(white: Samples, rate: int, slope_db: float, corner: float) -> Samples:
    """White noise with a spectrum that is flat to ``corner`` Hz and changes by ``slope_db`` an octave above."""

    def gain(hertz: Floats) -> Floats:
        return _ratio(slope_db * np.log2(np.maximum(hertz / corner, 1)))

    return _filtered(white, rate, gain)


def _with_noise(sound: Samples, noise: Samples, snr_db: float) -> Samples:
    noise *= _level(sound) / _level(noise) * _ratio(-snr_db)
    return sound + noise


def _decoded(rng: np.random.Generator, sound: Samples, rate: int) -> Samples:
    """The sound after a random lossy codec: μ-law of 8 bits, Vorbis or MP3."""
    peak = max(1.0, float(np.abs(sound).max()))
    codec = rng.choice(["mu-law", "vorbis", "mp3"])
    if codec == "mu-law":
        codes = torchaudio.functional.mu_law_encoding(torch.from_numpy(sound / peak), MU_LAW_LEVELS)
        decoded: Samples = torchaudio.functional.mu_law_decoding(codes, MU_LAW_LEVELS).numpy()
    elif codec == "vorbis":
        decoded = _through_file(sound / peak, rate, "OGG", "VORBIS", None, rng.uniform(*VORBIS_LEVELS))
    else:
        decoded = _through_file(sound / peak, rate, "MP3", "MPEG_LAYER_III", "VARIABLE", rng.uniform(*MP3_LEVELS))
    decoded *= peak
    return decoded


def _through_file(
    sound: Samples, rate: int, file_format: str, subtype: str, bitrate_mode: str | None, compression: float
) -> Samples:
    coded = io.BytesIO()
    with soundfile.SoundFile(
        coded,
        "w",
        rate,
        channels=1,
        subtype=subtype,
        format=file_format,
        compression_level=compression,
        bitrate_mode=bitrate_mode,
    ) as file:
        for start in range(0, len(sound), rate):  # libsndfile's Vorbis encoder runs out of stack on long blocks
            file.write(sound[start : start + rate])
    coded.seek(0)
    decoded: Samples = soundfile.read(coded, dtype="float32")[0][: len(sound)]
    return np.pad(decoded, (0, len(sound) - len(decoded)))


def _within_full_scale(sound: Samples) -> Samples:
    return sound / max(1.0, float(np.abs(sound).max()))


def _level(sound: Floats) -> float:
    """Root mean square, never 0."""
    return max(float(np.sqrt(np.square(sound, dtype=np.float64).mean())), 1e-12)


def _ratio(decibels: D) -> D:
    """Amplitude ratio of a level difference in dB."""
    ratio: D = 10 ** (decibels / 20)
    return ratio


def _fast_length(samples: int) -> int:
    return 1 << (samples - 1).bit_length()
