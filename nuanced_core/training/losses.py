"""What a trial minimises: how far predicted audio, style and prosody lie from the reference.

A loss is the mean over the batch of each item's own loss, so neither padding nor the company of others changes it.

Dimensions: B batch, T samples, M STFT frames, K mel bands, N tokens, F Kokoro frames, S = 256 style.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor, nn

from nuanced_core.audio import KOKORO_RATE

__all__ = ["MelSTFTLoss", "Resolution", "STFTLoss", "duration_loss", "energy_loss", "f0_loss", "style_loss"]


class Resolution(NamedTuple):
    """One way to look at a sound; sizes in samples at 24 kHz."""

    n_fft: int
    hop: int
    window: int
    mels: int


# Those of StyleTTS 2 (Li et al. 2023). At 512 points 80 mel bands would leave the lowest ones empty: 40 there.
RESOLUTIONS = (Resolution(512, 50, 240, 40), Resolution(1024, 120, 600, 80), Resolution(2048, 240, 1200, 80))
FLOOR = 1e-5  # added to a mel magnitude before its logarithm
LEAST_MAGNITUDE = 1e-4  # of linear frequency, under its logarithm
VOICED = 10.0  # Hz, above which Kokoro's source puts harmonics (voiced_threshod of its Generator)
LOWEST_PITCH = 50.0  # Hz: no voice speaks below


class MelSTFTLoss(nn.Module):
    """Multi-resolution STFT loss (Yamamoto et al. 2020, arXiv:1910.11480) on mel magnitudes.

    Mean over resolutions of ``|X - Y|_F / |Y|_F + mean |log X - log Y|``, X predicted, Y reference, each (K, M); the
    mean over the batch of that. A reference's spectra can be computed once and kept.
    """

    def __init__(self, resolutions: Sequence[Resolution] = RESOLUTIONS) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        for i, r in enumerate(self.resolutions):
            mel = torchaudio.functional.melscale_fbanks(
                r.n_fft // 2 + 1, 0.0, KOKORO_RATE / 2, r.mels, KOKORO_RATE, norm="slaney", mel_scale="slaney"
            )
            self.register_buffer(f"window_{i}", torch.hann_window(r.window), persistent=False)
            self.register_buffer(f"mel_{i}", mel.T.contiguous(), persistent=False)  # (K, n_fft // 2 + 1)

    def spectra(self, audio: Tensor) -> list[Tensor]:
        """Mel magnitudes (B, K, M) of audio (B, T), one for each resolution."""
        return [
            getattr(self, f"mel_{i}") @ _magnitude(audio, r, getattr(self, f"window_{i}"))
            for i, r in enumerate(self.resolutions)
        ]

    def forward(self, predicted: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar, of spectra that ``spectra`` gave."""
        terms = []
        for x, y in zip(predicted, reference, strict=True):
            log_difference = _item_means((torch.log(x + FLOOR) - torch.log(y + FLOOR)).abs())
            terms.append((_convergence(x, y) + log_difference).mean())
        return torch.stack(terms).mean()


class STFTLoss(nn.Module):
    """Multi-resolution STFT loss of Yamamoto et al. (2020, arXiv:1910.11480), on magnitudes of linear frequency.

    As MelSTFTLoss, but X and Y are (n_fft // 2 + 1, M), and a magnitude below 1e-4 counts as 1e-4 in the logarithm.
    Equal to ``auraloss.freq.MultiResolutionSTFTLoss`` but for two things: a clip is continued with silence where that
    mirrors it, and the quotient is of each item where that takes the norms over a whole batch.
    """

    def __init__(self, resolutions: Sequence[Resolution] = RESOLUTIONS) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        for i, r in enumerate(self.resolutions):
            self.register_buffer(f"window_{i}", torch.hann_window(r.window), persistent=False)

    def spectra(self, audio: Tensor) -> list[Tensor]:
        """Magnitudes (B, n_fft // 2 + 1, M) of audio (B, T), one for each resolution."""
        return [_magnitude(audio, r, getattr(self, f"window_{i}")) for i, r in enumerate(self.resolutions)]

    def forward(self, predicted: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar, of spectra that ``spectra`` gave."""
        terms = []
        for x, y in zip(predicted, reference, strict=True):
            logs = (torch.log(spectrum.clamp(min=LEAST_MAGNITUDE)) for spectrum in (x, y))
            terms.append((_convergence(x, y) + _item_means(torch.sub(*logs).abs())).mean())
        return torch.stack(terms).mean()


def _magnitude(audio: Tensor, resolution: Resolution, window: Tensor) -> Tensor:
    """STFT magnitudes (B, n_fft // 2 + 1, M) of audio (B, T), with silence before and behind it."""
    stft = torch.stft(
        audio,
        resolution.n_fft,
        resolution.hop,
        resolution.window,
        window,
        pad_mode="constant",
        return_complex=True,
    )
    # abs has no gradient at 0, where a silent frame would put NaN.
    magnitude: Tensor = torch.sqrt(torch.view_as_real(stft).square().sum(dim=-1) + 1e-12)
    return magnitude


def _convergence(x: Tensor, y: Tensor) -> Tensor:
    """Spectral convergence (B,) of x to y: ``|x - y|_F / |y|_F``."""
    convergence: Tensor = (x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1).clamp(min=FLOOR)
    return convergence


def _item_means(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)


def style_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Style similarity of (B, 256) each: mean over the batch of ``1 - cosine + mean squared error``."""
    # Rounding can put the cosine of equal vectors above 1.
    cosine = F.cosine_similarity(predicted, target, dim=1).clamp(max=1.0)
    return (1 - cosine).mean() + F.mse_loss(predicted, target)


def f0_loss(predicted: Tensor, reference: Tensor, frames: Sequence[int]) -> Tensor:
    """Pitch: mean difference in octaves, of F0 curves (B, 2F) in Hz, over what is voiced in the reference.

    Voiced is what is above 10 Hz, as for Kokoro's source; an item with nothing voiced counts 0. Below 50 Hz, where
    no voice speaks, the logarithm goes on as its tangent: a prediction near or below 0 Hz, unvoiced where it should
    be voiced, is then some octaves off and has a gradient that leads it back.

    Args:
        frames: F of each item; an F0 behind them is padding.
    """
    voiced = _real([2 * n for n in frames], reference) & (reference > VOICED)
    return _masked_mean((_octaves(predicted) - _octaves(reference)).abs(), voiced)


def energy_loss(predicted: Tensor, reference: Tensor, frames: Sequence[int]) -> Tensor:
    """Energy: mean difference of Kokoro's energy curves (B, 2F), natural logarithms; ``frames`` as in ``f0_loss``."""
    return _masked_mean((predicted - reference).abs(), _real([2 * n for n in frames], reference))


def duration_loss(predicted: Tensor, reference: Tensor, lengths: Sequence[int]) -> Tensor:
    """Durations: mean difference, in frames a phoneme, of durations (B, N) before rounding.

    As StyleTTS 2 (Li et al. 2023, arXiv:2306.07691), which Kokoro comes from: L1 on the sums of the predictor's
    sigmoids, without the two ends of a sentence, which are no phonemes.

    Args:
        lengths: N of each item, both ends included; a duration behind them is padding.
    """
    phonemes = _real([n - 1 for n in lengths], reference)
    phonemes[:, 0] = False
    return _masked_mean((predicted - reference).abs(), phonemes)


def _octaves(f0: Tensor) -> Tensor:
    """Base-2 logarithm of Hz, continued below LOWEST_PITCH by its tangent there."""
    below = (f0 - LOWEST_PITCH).clamp(max=0)
    return torch.log2(f0.clamp(min=LOWEST_PITCH)) + below / (LOWEST_PITCH * math.log(2))


def _real(lengths: Sequence[int], like: Tensor) -> Tensor:
    """Where each item of ``like`` (B, T) is no padding, (B, T)."""
    places = torch.arange(like.shape[1], device=like.device)
    return places < torch.tensor(lengths, device=like.device)[:, None]


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over the items of x (B, T) of each one's mean where its mask is set; 0 where it nowhere is."""
    return (x.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
