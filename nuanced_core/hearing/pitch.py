"""Pitch tracking by autocorrelation, without a model.

The method is that of Boersma (1993, "Accurate short-term analysis of the fundamental frequency and the
harmonics-to-noise ratio of a sampled sound"): the autocorrelation of a windowed frame, divided by that of the window,
has peaks at the periods; the best path through the peaks of all frames is the pitch. Two things are different: the
spectrum is flattened first, so that a strong formant is not taken for the pitch where a telephone has removed the
fundamental; and pitch is tracked twice, the second time in the range that the first one finds (De Looze and Hirst
2008), which removes most octave errors.

Dimensions: T samples at 16 kHz, P = T // 400 + 1 pitch frames of 25 ms, G lags, K candidates of a frame, the first of
which is "unvoiced".
"""

import math

import torch
from torch import Tensor, nn

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE, resample

__all__ = ["clip_pitch", "known_difference", "loud_frames", "pitch_statistics", "track_pitch"]

HOP = WHISPER_RATE // FRAMES_PER_SECOND  # samples; a pitch frame is as long as a Kokoro frame
LOWEST_HZ, HIGHEST_HZ = 50.0, 550.0  # range of speaking voices
PERIODS = 3  # of the lowest pitch, in a frame
BLOCK = 1000  # frames whose spectra are in memory at once
CANDIDATES = 8  # of a frame, the best peaks of its autocorrelation
ENVELOPE_HZ = 600.0  # width of the mean that is the envelope of a spectrum, of a few harmonics
LEAST_ENVELOPE = 0.01  # of the envelope's peak, so that bands without sound stay without sound
HARMONICS_HZ = 1500.0  # above it, the harmonics of speech are lost in noise
# Boersma's costs, of a path through candidates whose strength is the height of their peak, at most 1.
VOICED = 0.5  # height of a peak above which a frame is more likely voiced
OCTAVE_COST = 0.01  # of each octave below the highest pitch: of equal peaks the shortest period is right
JUMP_COST = 0.14  # of a jump by an octave between frames
VOICING_COST = 0.056  # of a change between voiced and unvoiced
# A loud frame is within a range below the loudest ones and above the background, unless that is as loud as speech.
RANGE_DB, MARGIN_DB, LEAST_GAP_DB = 25.0, 6.0, 12.0
# Range of the second pass, times the median of the first: ten semitones down and eleven up.
BELOW_MEDIAN, ABOVE_MEDIAN = 0.56, 1.9


@torch.no_grad()
def track_pitch(audio: Tensor, rate: int) -> Tensor:
    """Return the pitch (P,) in Hz of audio (samples,) at ``rate`` Hz, every 25 ms; 0 where it is unvoiced."""
    samples = resample(audio.detach().float().cpu(), rate, WHISPER_RATE)
    samples = samples - samples.mean()
    loud = loud_frames(samples)
    first = _best_path(_autocorrelation(samples, LOWEST_HZ), loud, LOWEST_HZ, HIGHEST_HZ)
    voiced = first[first > 0]
    if len(voiced) < 2:
        return first
    middle = float(voiced.median())
    lowest, highest = max(LOWEST_HZ, BELOW_MEDIAN * middle), min(HIGHEST_HZ, ABOVE_MEDIAN * middle)
    return _best_path(_autocorrelation(samples, lowest), loud, lowest, highest)


def loud_frames(audio: Tensor) -> Tensor:
    """Return which pitch frames (P,) of audio (samples,) at 16 kHz are louder than the background.

    The level is that of the differences of samples, in which the hum of the mains is quiet.
    """
    power = _frames(audio, HOP).diff(dim=1).square().mean(dim=1)
    level = 10 * power.clamp(min=1e-14).log10()  # dB
    background, speech = torch.quantile(level, torch.tensor([0.1, 0.95])).unbind()
    gate = torch.maximum(speech - RANGE_DB, torch.minimum(background + MARGIN_DB, speech - LEAST_GAP_DB))
    return level > gate


def pitch_statistics(hertz: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median, in log2 Hz, and the spread, in octaves, of the voiced frames of a pitch (P,) in Hz.

    The spread is half the distance between the quantiles 16 % and 84 %: the standard deviation, if the distribution is
    normal, and hardly changed by single octave errors. Both are NaN without a voiced frame, and differentiable.
    """
    octaves = hertz[hertz > 0].log2()
    if len(octaves) == 0:
        return hertz.new_tensor(torch.nan), hertz.new_tensor(torch.nan)
    low, middle, high = torch.quantile(octaves, octaves.new_tensor([0.16, 0.5, 0.84])).unbind()
    return middle, (high - low) / 2


def clip_pitch(audio: Tensor, rate: int) -> Tensor:
    """Return ``pitch_statistics`` (2,) of audio (samples,) at ``rate`` Hz."""
    return torch.stack(pitch_statistics(track_pitch(audio, rate)))


def known_difference(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the absolute difference of two tensors of equal shape, 0 where one of them is NaN."""
    # NaN is replaced before the difference, whose gradient would be NaN otherwise.
    known = ~(found.isnan() | wanted.isnan())
    nothing = torch.zeros_like(wanted)
    return (torch.where(known, found, nothing) - torch.where(known, wanted, nothing)).abs()


def _frames(samples: Tensor, length: int) -> Tensor:
    """Return frames (P, length) of samples (T,), without copying them; the middles of two are HOP apart."""
    frames: Tensor = nn.functional.pad(samples, (length // 2, length // 2 + HOP)).unfold(0, length, HOP)
    return frames[: len(samples) // HOP + 1]


def _autocorrelation(samples: Tensor, lowest: float) -> Tensor:
    """Return the normalised autocorrelation (P, G) of frames of three periods of the lowest pitch in Hz."""
    length = round(PERIODS * WHISPER_RATE / lowest)
    window = torch.hann_window(length, periodic=False)
    size = 1 << (2 * length - 1).bit_length()
    lags = math.ceil(WHISPER_RATE / lowest) + 2
    of_window = torch.fft.irfft(torch.fft.rfft(window, size).abs().square(), size)[:lags]
    rows = []
    for frames in torch.split(_frames(samples, length), BLOCK):
        centred = (frames - frames.mean(dim=1, keepdim=True)) * window
        flat = _flattened(torch.fft.rfft(centred, size).abs().square(), size)
        rows.append(torch.fft.irfft(flat, size)[:, :lags])
    of_frames = torch.cat(rows)
    normalised: Tensor = of_frames / of_frames[:, :1].clamp(min=1e-12) * (of_window[0] / of_window)
    return normalised


def _flattened(power: Tensor, size: int) -> Tensor:
    """Divide power spectra (P, size // 2 + 1) by their envelopes, and remove what is above the harmonics."""
    bins_per_hertz = size / WHISPER_RATE
    width = round(ENVELOPE_HZ * bins_per_hertz) // 2 * 2 + 1
    envelope = nn.functional.avg_pool1d(power[:, None], width, 1, width // 2, count_include_pad=False)[:, 0]
    flat = power / (envelope + LEAST_ENVELOPE * envelope.amax(dim=1, keepdim=True)).clamp(min=1e-20)
    flat[:, round(HARMONICS_HZ * bins_per_hertz) :] = 0
    return flat


def _best_path(correlation: Tensor, loud: Tensor, lowest: float, highest: float) -> Tensor:
    """Return the pitch (P,) of the path of highest strength (Viterbi), with pitches between two limits in Hz."""
    hertz, strength = _candidates(correlation, lowest, highest)
    unvoiced = torch.where(loud, VOICED, 2.0)
    hertz = torch.cat([torch.zeros(len(hertz), 1), hertz], dim=1)  # (P, K)
    strength = torch.cat([unvoiced[:, None], strength], dim=1)
    octaves = hertz.clamp(min=1).log2()
    is_voiced = hertz > 0
    jumps = (octaves[1:, :, None] - octaves[:-1, None]).abs()  # (P - 1, K now, K before)
    both, one = is_voiced[1:, :, None] & is_voiced[:-1, None], is_voiced[1:, :, None] ^ is_voiced[:-1, None]
    costs = JUMP_COST * jumps * both + VOICING_COST * one
    total, came_from = strength[0], []
    for now, cost in zip(strength[1:], costs, strict=True):
        best, before = (total - cost).max(dim=1)
        total = best + now
        came_from.append(before)
    path = [int(total.argmax())]
    for before in reversed(came_from):
        path.append(int(before[path[-1]]))
    return hertz[torch.arange(len(hertz)), torch.tensor(path[::-1])]


def _candidates(correlation: Tensor, lowest: float, highest: float) -> tuple[Tensor, Tensor]:
    """Return pitches (P, K - 1) in Hz and strengths of the best peaks; missing ones have strength -inf."""
    before, here, after = correlation[:, :-2], correlation[:, 1:-1], correlation[:, 2:]
    # The parabola through three points has its peak between them.
    curvature = (before - 2 * here + after).clamp(max=-1e-9)
    shift = ((before - after) / (2 * curvature)).clamp(-0.5, 0.5)
    height = here - (before - after) * shift / 4
    hertz = WHISPER_RATE / (torch.arange(1, correlation.shape[1] - 1) + shift)
    is_peak = (here > before) & (here >= after) & (hertz >= lowest) & (hertz <= highest)
    # Above 1, a peak says that the division by the window's autocorrelation has gone too far.
    height = torch.where(height > 1, 1 / height, height)
    strength = torch.where(is_peak, height - OCTAVE_COST * (highest / hertz).log2(), -torch.inf)
    best, index = strength.topk(CANDIDATES, dim=1)
    return hertz.gather(1, index), best
