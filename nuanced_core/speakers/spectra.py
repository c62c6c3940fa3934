"""Spectra that speaker encoders hear, in real arithmetic and differentiable: Kaldi's filter bank, librosa's mel power.

Everything that is linear (centring, pre-emphasis, window, Fourier transform) is one matrix, so a spectrum is one
convolution of blocks of ``HOP`` samples.

Dimensions: B batch, T frames of 10 ms, K frequency bins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from nuanced_core.audio import WHISPER_RATE

__all__ = ["FRAME", "HOP", "KaldiFbank", "MelPower"]

RATE = WHISPER_RATE  # Hz
FRAME = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FULL_SCALE = 32_768  # Kaldi's samples are 16-bit integers
PREEMPHASIS = 0.97
KALDI_FFT = 512  # samples, the next power of two above a frame
KALDI_MELS, KALDI_LOWEST = 80, 20.0  # bands, Hz
KALDI_FLOOR = torch.finfo(torch.float32).eps  # of a band's energy, before the logarithm
LIBROSA_MELS = 40


class _PowerSpectrum(nn.Module):
    """Power (B, K, T) of the frames of audio, transformed by a matrix (FRAME, 2K): K real parts, K imaginary parts."""

    weight: Tensor

    def __init__(self, transform: Tensor) -> None:
        super().__init__()
        self.blocks = -(-FRAME // HOP)
        rows = F.pad(transform, (0, 0, 0, self.blocks * HOP - FRAME))
        weight = rows.view(self.blocks, HOP, -1).to(torch.get_default_dtype())
        self.register_buffer("weight", weight.contiguous(), persistent=False)  # (blocks, HOP, 2K)

    def forward(self, audio: Tensor) -> Tensor:
        frames = 1 + (audio.shape[-1] - FRAME) // HOP
        needed = (frames - 1 + self.blocks) * HOP  # the rest of the last block has weight 0
        blocks = F.pad(audio, (0, needed - audio.shape[-1])).view(len(audio), -1, HOP)
        # Products of matrices, not a convolution: on a GPU torch rounds the inputs of convolutions to TF32, and the
        # rounding of loud bands is louder than the quiet ones, whose logarithm is heard.
        parts = [blocks[:, i : i + frames] @ weight for i, weight in enumerate(self.weight)]
        real, imaginary = sum(parts[1:], parts[0]).transpose(1, 2).chunk(2, dim=1)
        power: Tensor = real.square() + imaginary.square()
        return power


class KaldiFbank(nn.Module):
    """Logarithmic energies of 80 mel bands, equal to ``torchaudio.compliance.kaldi.fbank`` without dither.

    Frames of 25 ms every 10 ms that lie wholly inside the audio, Povey's window, pre-emphasis 0.97.
    """

    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Every step on a frame is linear, so their product is one matrix; in float64, whose rounding does not show.
        centre = torch.eye(FRAME, dtype=torch.float64) - 1 / FRAME
        before = torch.diag(torch.ones(FRAME - 1, dtype=torch.float64), -1)
        before[0, 0] = 1  # the sample before the first one is taken to be equal to it
        emphasis = torch.eye(FRAME, dtype=torch.float64) - PREEMPHASIS * before
        window = torch.hann_window(FRAME, periodic=False, dtype=torch.float64) ** 0.85
        fourier = _fourier(torch.arange(1, KALDI_FFT // 2), KALDI_FFT)  # the bands exclude 0 Hz and 8 kHz
        self.spectrum = _PowerSpectrum(FULL_SCALE * (window[:, None] * (emphasis @ centre)).T @ fourier)
        self.register_buffer("bands", _kaldi_bands().to(torch.get_default_dtype()), persistent=False)  # (80, K)

    def forward(self, audio: Tensor) -> Tensor:
        """Return log energies (B, T, 80), T = 1 + (samples - 400) // 160, of audio (B, samples) at 16 kHz in ±1."""
        energy: Tensor = self.bands @ self.spectrum(audio)
        return energy.clamp(min=KALDI_FLOOR).log().transpose(1, 2)


class MelPower(nn.Module):
    """Power of 40 mel bands, equal to ``librosa.feature.melspectrogram(n_fft=400, hop_length=160, n_mels=40)``.

    Slaney's mel scale and normalisation, periodic Hann window; frames are centred, the ends padded with zeros.
    """

    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(FRAME, dtype=torch.float64)
        self.spectrum = _PowerSpectrum(window[:, None] * _fourier(torch.arange(FRAME // 2 + 1), FRAME))
        bands = melscale_fbanks(FRAME // 2 + 1, 0, RATE / 2, LIBROSA_MELS, RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("bands", bands.T.to(torch.get_default_dtype()).contiguous(), persistent=False)  # (40, K)

    def forward(self, audio: Tensor) -> Tensor:
        """Return powers (B, T, 40), T = 1 + samples // 160, of audio (B, samples) at 16 kHz."""
        padded = F.pad(audio, (FRAME // 2, FRAME // 2))
        power: Tensor = self.bands @ self.spectrum(padded)
        return power.transpose(1, 2)


def _fourier(bins: Tensor, size: int) -> Tensor:
    """Return the real and then the imaginary parts of bins of a Fourier transform of ``size`` points, (FRAME, 2K)."""
    # Reduced to one turn, so that the angles are exact.
    turns = torch.outer(torch.arange(FRAME), bins) % size
    angles = turns.to(torch.float64) * (2 * math.pi / size)
    return torch.cat([torch.cos(angles), -torch.sin(angles)], dim=1)


def _kaldi_bands() -> Tensor:
    """Return Kaldi's triangular mel bands (80, K) of the bins between 0 Hz and 8 kHz, which meet on the mel scale."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hertz / 700)

    limits = mel(torch.tensor([KALDI_LOWEST, RATE / 2], dtype=torch.float64))
    edges = torch.linspace(float(limits[0]), float(limits[1]), KALDI_MELS + 2, dtype=torch.float64)[:, None]
    bins = mel(torch.arange(1, KALDI_FFT // 2, dtype=torch.float64) * RATE / KALDI_FFT)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
