"""What a trial minimises: how far predicted audio and predicted style lie from the reference.

Dimensions: B batch, T samples, M STFT frames, K mel bands, S = 256 style.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor, nn

from nuanced_core.audio import KOKORO_RATE

__all__ = ["MelSTFTLoss", "Resolution", "style_loss"]


class Resolution(NamedTuple):
    """One way to look at a sound; sizes in samples at 24 kHz."""

    n_fft: int
    hop: int
    window: int
    mels: int


# Those of StyleTTS 2 (Li et al. 2023). At 512 points 80 mel bands would leave the lowest ones empty: 40 there.
RESOLUTIONS = (Resolution(512, 50, 240, 40), Resolution(1024, 120, 600, 80), Resolution(2048, 240, 1200, 80))
FLOOR = 1e-5  # added to a mel magnitude before its logarithm


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
        spectra = []
        for i, r in enumerate(self.resolutions):
            stft = torch.stft(
                audio,
                r.n_fft,
                r.hop,
                r.window,
                getattr(self, f"window_{i}"),
                pad_mode="constant",
                return_complex=True,
            )
            # abs has no gradient at 0, where a silent frame would put NaN.
            magnitude = torch.sqrt(torch.view_as_real(stft).square().sum(dim=-1) + 1e-12)
            spectra.append(getattr(self, f"mel_{i}") @ magnitude)
        return spectra

    def forward(self, predicted: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar, of spectra that ``spectra`` gave."""
        terms = []
        for x, y in zip(predicted, reference, strict=True):
            convergence = (x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1).clamp(min=FLOOR)
            log_difference = (torch.log(x + FLOOR) - torch.log(y + FLOOR)).abs().flatten(1).mean(dim=1)
            terms.append((convergence + log_difference).mean())
        return torch.stack(terms).mean()


def style_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Style similarity of (B, 256) each: mean over the batch of ``1 - cosine + mean squared error``."""
    # Rounding can put the cosine of equal vectors above 1.
    cosine = F.cosine_similarity(predicted, target, dim=1).clamp(max=1.0)
    return (1 - cosine).mean() + F.mse_loss(predicted, target)
