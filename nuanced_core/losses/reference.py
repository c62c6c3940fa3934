"""Losses of predicted audio, style and prosody.

A loss is the mean over the batch of each item's own loss, so neither padding nor the other items change it.

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
    """Parameters of a spectrogram; sizes in samples at 24 kHz."""

    n_fft: int
    hop: int
    window: int
    mels: int


# As in StyleTTS 2 (Li et al. 2023), except for the mel bands at 512 points: with 80, the lowest would be empty.
RESOLUTIONS = (Resolution(512, 50, 240, 40), Resolution(1024, 120, 600, 80), Resolution(2048, 240, 1200, 80))
FLOOR = 1e-5  # added to a mel magnitude before its logarithm
MIN_MAGNITUDE = 1e-4  # of a linear-frequency magnitude in its logarithm
VOICED_HZ = 10.0  # F0 above which Kokoro's source generates harmonics (voiced_threshod of its Generator)
LOWEST_PITCH_HZ = 50.0  # no voice speaks below


class MelSTFTLoss(nn.Module):
    """Multi-resolution STFT loss (Yamamoto et al. 2020, arXiv:1910.11480) on mel magnitudes.

    The mean over resolutions and over the batch of ``|X - Y|_F / |Y|_F + mean |log X - log Y|``, with X predicted and
    Y reference, each (K, M). A reference's spectra can be computed once and kept.
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
        """Compute mel magnitudes (B, K, M) of audio (B, T), for each resolution."""
        return [
            getattr(self, f"mel_{i}") @ _magnitude(audio, r, getattr(self, f"window_{i}"))
            for i, r in enumerate(self.resolutions)
        ]

    def forward(self, predicted: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
        """Compute the loss, a scalar, of spectra that ``spectra`` returned."""
        terms = []
        for x, y in zip(predicted, reference, strict=True):
            log_difference = _item_means((torch.log(x + FLOOR) - torch.log(y + FLOOR)).abs())
            terms.append((_convergence(x, y) + log_difference).mean())
        return torch.stack(terms).mean()


class STFTLoss(nn.Module):
    """Multi-resolution STFT loss of Yamamoto et al. (2020, arXiv:1910.11480), on magnitudes of linear frequency.

    As MelSTFTLoss, except that X and Y are (n_fft // 2 + 1, M), and that magnitudes below 1e-4 are 1e-4 in the
    logarithm. Differs from ``auraloss.freq.MultiResolutionSTFTLoss`` in two points: a clip is padded with silence
    instead of its mirror image, and the quotient is computed for each item instead of with norms over the whole batch.
    """

    def __init__(self, resolutions: Sequence[Resolution] = RESOLUTIONS) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        for i, r in enumerate(self.resolutions):
            self.register_buffer(f"window_{i}", torch.hann_window(r.window), persistent=False)

    def spectra(self, audio: Tensor) -> list[Tensor]:
        """Compute magnitudes (B, n_fft // 2 + 1, M) of audio (B, T), for each resolution."""
        return [_magnitude(audio, r, getattr(self, f"window_{i}")) for i, r in enumerate(self.resolutions)]

    def forward(self, predicted: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
        """Compute the loss, a scalar, of spectra that ``spectra`` returned."""
        terms = []
        for x, y in zip(predicted, reference, strict=True):
            logs = (torch.log(spectrum.clamp(min=MIN_MAGNITUDE)) for spectrum in (x, y))
            terms.append((_convergence(x, y) + _item_means(torch.sub(*logs).abs())).mean())
        return torch.stack(terms).mean()


def _magnitude(audio: Tensor, resolution: Resolution, window: Tensor) -> Tensor:
    """Compute STFT magnitudes (B, n_fft // 2 + 1, M) of audio (B, T), padded with silence at both ends."""
    stft = torch.stft(
        audio,
        resolution.n_fft,
        resolution.hop,
        resolution.window,
        window,
        pad_mode="constant",
        return_complex=True,
    )
    # Not abs(): its gradient at 0, as in a silent frame, is NaN.
    magnitude: Tensor = torch.sqrt(torch.view_as_real(stft).square().sum(dim=-1) + 1e-12)
    return magnitude


def _convergence(x: Tensor, y: Tensor) -> Tensor:
    """Compute the spectral convergence (B,) of x to y: ``|x - y|_F / |y|_F``."""
    convergence: Tensor = (x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1).clamp(min=FLOOR)
    return convergence


def _item_means(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)


def style_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the mean over the batch of ``1 - cosine + mean squared error`` of styles (B, 256)."""
    # Rounding can put the cosine of equal vectors above 1.
    cosine = F.cosine_similarity(predicted, target, dim=1).clamp(max=1.0)
    return (1 - cosine).mean() + F.mse_loss(predicted, target)


def f0_loss(predicted: Tensor, reference: Tensor, frames: Sequence[int]) -> Tensor:
    """Compute the mean absolute pitch difference in octaves over the voiced parts of the reference.

    F0 above 10 Hz is voiced, as for Kokoro's source; an item without voiced parts counts 0. Below 50 Hz, where no
    voice speaks, the logarithm is continued by its tangent: a prediction near or below 0 Hz, unvoiced where it should
    be voiced, is then some octaves off and has a gradient towards the reference.

    Args:
        predicted, reference: F0 curves (B, 2F) in Hz.
        frames: F of each item; what follows in the curves is padding.
    """
    voiced = _padding_mask([2 * n for n in frames], reference) & (reference > VOICED_HZ)
    return _masked_mean((_octaves(predicted) - _octaves(reference)).abs(), voiced)


def energy_loss(predicted: Tensor, reference: Tensor, frames: Sequence[int]) -> Tensor:
    """Compute the mean absolute difference of Kokoro's energy curves (B, 2F), which are natural logarithms.

    Args:
        frames: F of each item; what follows in the curves is padding.
    """
    return _masked_mean((predicted - reference).abs(), _padding_mask([2 * n for n in frames], reference))


def duration_loss(predicted: Tensor, reference: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute the mean absolute difference, in frames per phoneme, of durations (B, N) before rounding.

    As in StyleTTS 2 (Li et al. 2023, arXiv:2306.07691), on which Kokoro is based: L1 of the sums of the predictor's
    sigmoids, without the first and last token of a sentence, which are not phonemes.

    Args:
        lengths: N of each item, with the first and last token; the durations that follow are padding.
    """
    phonemes = _padding_mask([n - 1 for n in lengths], reference)
    phonemes[:, 0] = False
    return _masked_mean((predicted - reference).abs(), phonemes)


def _octaves(f0: Tensor) -> Tensor:
    """Compute the base-2 logarithm of Hz, continued below LOWEST_PITCH_HZ by its tangent there."""
    below = (f0 - LOWEST_PITCH_HZ).clamp(max=0)
    return torch.log2(f0.clamp(min=LOWEST_PITCH_HZ)) + below / (LOWEST_PITCH_HZ * math.log(2))


def _padding_mask(lengths: Sequence[int], like: Tensor) -> Tensor:
    """Return a mask (B, T) that is True where the items of ``like`` (B, T) are not padding."""
    positions = torch.arange(like.shape[1], device=like.device)
    return positions < torch.tensor(lengths, device=like.device)[:, None]


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over items of the mean of x (B, T) where the mask is set; an item without any counts 0."""
    return (x.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
