"""F0 and energy as in a recording: its curves, moved to a voice's own mean, in place of the predicted ones.

Dimensions: P frames of 25 ms of a recording; F frames of speech, whose F0 and energy have 2F values (12.5 ms).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter1d, median_filter  # type: ignore[import-untyped]
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE
from nuanced_core.hearing.pitch import HOP, loud_frames, track_pitch

__all__ = ["SourceCurves", "VoiceCurves", "follow_energy", "follow_f0", "hear_curves", "source_times"]

Floats = npt.NDArray[np.float64]

VOICED_HZ = 40.0  # Kokoro's predicted F0 is about 10 where it is unvoiced
LOUD_BELOW = 3.0  # below a voice's mean energy, predicted values are those of silence
LOWEST_HZ, HIGHEST_HZ = 50.0, 600.0
MOST_OCTAVES = 1.0  # by which F0 is moved at most
MOST_ENERGY = 2.5  # by which energy, a natural logarithm, is moved at most
F0_SMOOTHING = 1.0  # standard deviation in frames of 25 ms
ENERGY_SMOOTHING = 4.0  # so that the phonemes keep their own energy, and syllables and phrases are followed
UNCERTAIN_LEVEL = 3.0  # dB; least standard deviation of a recording's level


@dataclass(frozen=True)
class SourceCurves:
    """F0 and level of a recording, every 25 ms."""

    f0: Tensor  # (P,) Hz, 0 where unvoiced
    level: Tensor  # (P,) dB
    loud: Tensor  # (P,) bool

    @property
    def f0_mean(self) -> float:
        """Mean of log2 F0 over the voiced frames; NaN without one."""
        return float(self.f0[self.f0 > 0].log2().mean())

    def level_statistics(self) -> tuple[float, float]:
        """Return mean and standard deviation in dB of the smoothed level where it is loud."""
        loud = self.loud.numpy()
        if loud.sum() < 2:
            return float(self.level.mean()), UNCERTAIN_LEVEL
        smooth = _smooth(self.level.double().numpy(), loud, ENERGY_SMOOTHING)[loud]
        return float(smooth.mean()), max(float(smooth.std()), UNCERTAIN_LEVEL)

    @classmethod
    def joined(cls, parts: Sequence["SourceCurves"]) -> "SourceCurves":
        """Join the curves of consecutive parts of a recording."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("f0", "level", "loud")))


@dataclass(frozen=True)
class VoiceCurves:
    """Means of what Kokoro predicts for a voice."""

    f0_mean: float  # log2 Hz, of the voiced values
    energy_mean: float  # of the values that are not silence
    energy_std: float  # of these, smoothed

    @classmethod
    def of(cls, f0: Sequence[Tensor], energy: Sequence[Tensor]) -> "VoiceCurves":
        """Measure predicted curves (2F,) of some sentences."""
        voiced = torch.cat([curve[curve > VOICED_HZ].log2() for curve in f0])
        flat = torch.cat(list(energy)).double()
        mean = float(flat[flat > flat.quantile(0.9) - LOUD_BELOW].mean())
        loud = [(curve > mean - LOUD_BELOW).cpu().numpy() for curve in energy]
        smooth = np.concatenate(
            [
                _smooth(curve.double().cpu().numpy(), mask, 2 * ENERGY_SMOOTHING)[mask]
                for curve, mask in zip(energy, loud, strict=True)
            ]
        )
        return cls(float(voiced.mean()), float(smooth.mean()), float(smooth.std()))


def hear_curves(audio: Tensor) -> SourceCurves:
    """Return the curves of audio (samples,) at 16 kHz; P = samples // 400, the last frame left out."""
    frames = len(audio) // HOP
    power = audio[: frames * HOP].reshape(frames, HOP).square().mean(dim=1)
    level = 10 * power.clamp(min=1e-10).log10()
    return SourceCurves(track_pitch(audio, WHISPER_RATE)[:frames], level, loud_frames(audio)[:frames])


def source_times(anchors: Sequence[tuple[float, float]], values: int) -> Floats:
    """Return the time in a recording, in seconds, of each value (2F,) of a segment's curves.

    Args:
        anchors: (seconds in the segment, seconds in the recording) of ends of words, both not falling; at least one.
        values: 2F.
    """
    times = (np.arange(values) + 0.5) / (2 * FRAMES_PER_SECOND)
    spoken, heard = (np.array(column) for column in zip(*anchors, strict=True))
    found = np.interp(times, spoken, heard)
    found += np.minimum(times - spoken[0], 0) + np.maximum(times - spoken[-1], 0)  # before and after at the same pace
    result: Floats = found
    return result


def follow_f0(predicted: Tensor, source: SourceCurves, times: Floats, shift: float, share: float) -> Tensor:
    """Mix predicted F0 (2F,) with the source's curve, moved by ``shift`` octaves; unvoiced values stay unvoiced.

    Args:
        predicted: Hz, about 0 where unvoiced.
        times: see ``source_times``.
        shift: mean of log2 F0 of the voice minus that of the source.
        share: of the source's curve, in log F0.
    """
    curve = predicted.detach().double().cpu().numpy()
    voiced = curve > VOICED_HZ
    first, last = _span(times, len(source.f0))
    hertz = source.f0[first:last].double().numpy()
    known = np.flatnonzero(hertz > 0)
    if share == 0 or not voiced.any() or len(known) < 3:
        return predicted
    octaves = np.interp(np.arange(len(hertz)), known, median_filter(np.log2(hertz[known]), 5, mode="nearest"))
    octaves = gaussian_filter1d(octaves, F0_SMOOTHING)
    wanted = np.interp(times * FRAMES_PER_SECOND - first, np.arange(len(octaves)), octaves) + shift
    places = np.flatnonzero(voiced)
    move = np.clip(wanted[places] - np.log2(curve[places]), -MOST_OCTAVES, MOST_OCTAVES)
    # Values beside the voiced ones move along, so that the curve has no step at their ends.
    moved = curve * 2 ** (share * np.interp(np.arange(len(curve)), places, move))
    moved = np.where(voiced, moved.clip(LOWEST_HZ, HIGHEST_HZ), np.minimum(moved, VOICED_HZ))
    return torch.from_numpy(moved).to(predicted)


def follow_energy(
    predicted: Tensor, source: SourceCurves, times: Floats, voice: VoiceCurves, level: tuple[float, float], share: float
) -> Tensor:
    """Mix predicted energy (2F,) with the source's level, in units of each one's own deviation from its own mean.

    Only the smoothed curves are mixed. Values stay as predicted where either one is silent.

    Args:
        level: mean and standard deviation in dB of the source's level.
        share: of the source's curve.
        predicted, source, times, voice: as for ``follow_f0``.
    """
    curve = predicted.detach().double().cpu().numpy()
    audible = curve > voice.energy_mean - LOUD_BELOW
    first, last = _span(times, len(source.level))
    loud = source.loud[first:last].numpy()
    if share == 0 or not audible.any() or not loud.any():
        return predicted
    place = times * FRAMES_PER_SECOND - 0.5 - first  # level is the mean from a frame's beginning to its end
    decibels = _smooth(source.level[first:last].double().numpy(), loud, ENERGY_SMOOTHING)
    standard = (np.interp(place, np.arange(len(decibels)), decibels) - level[0]) / level[1]
    both = audible & (np.interp(place, np.arange(len(loud)), loud.astype(float)) > 0.5)
    wanted = voice.energy_mean + voice.energy_std * standard
    move = np.clip(wanted - _smooth(curve, audible, 2 * ENERGY_SMOOTHING), -MOST_ENERGY, MOST_ENERGY)
    ramp = gaussian_filter1d(both.astype(float), 2.0)
    return torch.from_numpy(curve + share * np.where(both, ramp, 0.0) * move).to(predicted)


def _span(times: Floats, frames: int) -> tuple[int, int]:
    """Return the frames of a recording that a segment's times lie in, and half a second around them."""
    margin = FRAMES_PER_SECOND // 2
    first = min(max(int(times[0] * FRAMES_PER_SECOND) - margin, 0), max(frames - 1, 0))
    return first, max(first + 1, min(int(times[-1] * FRAMES_PER_SECOND) + margin, frames))


def _smooth(curve: Floats, mask: npt.NDArray[np.bool_], sigma: float) -> Floats:
    """Smooth a curve by a Gaussian over the values in a mask alone."""
    weights = gaussian_filter1d(mask.astype(float), sigma, mode="constant")
    smooth: Floats = gaussian_filter1d(np.where(mask, curve, 0.0), sigma, mode="constant") / np.maximum(weights, 1e-6)
    return np.where(weights > 1e-3, smooth, curve)
