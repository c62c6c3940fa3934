"""Short-time Fourier transform and its inverse in real arithmetic, for backends without complex tensors.

Dimensions: B batch, T samples, M STFT frames, K = n_fft // 2 + 1 frequency bins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RealSTFT"]


class RealSTFT(nn.Module):
    """STFT and inverse STFT, equal to ``torch.stft`` and ``torch.istft`` with a periodic Hann window.

    Frames are centred and the ends are padded by reflection. Each direction is one convolution with the windowed
    Fourier basis, so it runs under bf16 autocast, torch.compile and export. The inverse divides by the sum of squared
    windows (Griffin and Lim 1984).
    """

    forward_basis: Tensor
    inverse_basis: Tensor
    squared_window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.bins = n_fft // 2 + 1
        # In float64: a float32 basis has an error of 1e-6 before any sum.
        time = torch.arange(n_fft, dtype=torch.float64)
        window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
        # Reduce the phase to one turn, so that sines of multiples of pi are exactly 0 and the angle of a real bin has
        # the same sign as with an FFT.
        turns = torch.outer(torch.arange(self.bins, dtype=torch.float64), time) % n_fft / n_fft
        cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
        sin[turns * 2 % 1 == 0] = 0.0
        forward = torch.cat([cos, -sin]) * window  # (2K, n_fft)
        # Every bin also represents its mirror image, except the first and, for even n_fft, the last.
        bin_weights = torch.full((self.bins, 1), 2.0, dtype=torch.float64)
        bin_weights[0] = 1.0
        if n_fft % 2 == 0:
            bin_weights[-1] = 1.0
        inverse = torch.cat([bin_weights * cos, -bin_weights * sin]) * window / n_fft
        self.register_buffer("forward_basis", forward.to(torch.get_default_dtype()).unsqueeze(1), persistent=False)
        self.register_buffer("inverse_basis", inverse.to(torch.get_default_dtype()).unsqueeze(1), persistent=False)
        self.register_buffer(
            "squared_window", window.square().to(torch.get_default_dtype()).view(1, 1, -1), persistent=False
        )

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Transform audio (B, T) to real and imaginary parts, each (B, K, M) with M = T // hop + 1."""
        margin = self.n_fft // 2
        padded = F.pad(audio.unsqueeze(1), (margin, margin), mode="reflect")
        spectrum = F.conv1d(padded, self.forward_basis, stride=self.hop)
        real, imaginary = torch.split(spectrum, self.bins, dim=1)
        return real, imaginary

    def inverse(self, real: Tensor, imaginary: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Transform real and imaginary parts, each (B, K, M), to audio (B, (M - 1) * hop).

        ``frame_mask`` (B, 1, M) is 1 at an item's frames and 0 in the padding of a batch, where the spectrum must be
        0: each item then equals the inverse of its own frames.
        """
        spectrum = torch.cat([real, imaginary], dim=1)
        audio = F.conv_transpose1d(spectrum, self.inverse_basis, stride=self.hop)
        frame_weights = torch.ones_like(real[:1, :1]) if frame_mask is None else frame_mask.to(real.dtype)
        envelope = F.conv_transpose1d(frame_weights, self.squared_window.to(frame_weights.dtype), stride=self.hop)
        margin = self.n_fft // 2
        # The envelope is 0 in the padding of a shorter item, where the audio must be 0 instead of 0 / 0.
        audio = audio / envelope.clamp(min=1e-11)
        audio = audio[:, 0, margin : audio.shape[-1] - margin]
        if frame_mask is None:
            return audio
        ends = (frame_mask.sum(dim=2) - 1) * self.hop
        return audio * (torch.arange(audio.shape[1], device=audio.device) < ends)
