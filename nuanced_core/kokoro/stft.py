"""Short-time Fourier transform and its inverse in real arithmetic, for places where complex tensors do not run.

Dimensions: B batch, T samples, M STFT frames, K = n_fft // 2 + 1 frequency bins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RealSTFT"]


class RealSTFT(nn.Module):
    """Equals ``torch.stft`` and ``torch.istft`` with a periodic Hann window, centred and reflected at the ends.

    Both are one convolution with the windowed Fourier basis, so they run under bf16 autocast, torch.compile and
    export. The inverse divides by the sum of squared windows (Griffin and Lim 1984).
    """

    forward_basis: Tensor
    inverse_basis: Tensor
    squared_window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.bins = n_fft // 2 + 1
        # In float64: a float32 basis is off by 1e-6 before any sum.
        time = torch.arange(n_fft, dtype=torch.float64)
        window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
        # The phase is reduced to one turn, so that sines of multiples of pi are exactly 0 and the angle of a real
        # bin has the sign that the FFT gives it.
        turns = torch.outer(torch.arange(self.bins, dtype=torch.float64), time) % n_fft / n_fft
        cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
        sin[turns * 2 % 1 == 0] = 0.0
        forward = torch.cat([cos, -sin]) * window  # (2K, n_fft)
        # Every bin but the first and (n_fft even) the last stands for its mirror image too.
        twice = torch.full((self.bins, 1), 2.0, dtype=torch.float64)
        twice[0] = 1.0
        if n_fft % 2 == 0:
            twice[-1] = 1.0
        inverse = torch.cat([twice * cos, -twice * sin]) * window / n_fft
        self.register_buffer("forward_basis", forward.to(torch.get_default_dtype()).unsqueeze(1), persistent=False)
        self.register_buffer("inverse_basis", inverse.to(torch.get_default_dtype()).unsqueeze(1), persistent=False)
        self.register_buffer(
            "squared_window", window.square().to(torch.get_default_dtype()).view(1, 1, -1), persistent=False
        )

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """The real and imaginary part, each of shape (B, K, M), of audio of shape (B, T); M = T // hop + 1."""
        half = self.n_fft // 2
        padded = F.pad(audio.unsqueeze(1), (half, half), mode="reflect")
        spectrum = F.conv1d(padded, self.forward_basis, stride=self.hop)
        real, imaginary = torch.split(spectrum, self.bins, dim=1)
        return real, imaginary

    def inverse(self, real: Tensor, imaginary: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """The audio, of shape (B, (M - 1) * hop), of a spectrum whose parts are each of shape (B, K, M).

        ``frame_mask`` (B, 1, M) is 1 where an item of a padded batch has a frame and 0 behind its end, where the
        spectrum must be 0: each item then equals the inverse of its own frames.
        """
        spectrum = torch.cat([real, imaginary], dim=1)
        audio = F.conv_transpose1d(spectrum, self.inverse_basis, stride=self.hop)
        ones = torch.ones_like(real[:1, :1]) if frame_mask is None else frame_mask.to(real.dtype)
        envelope = F.conv_transpose1d(ones, self.squared_window.to(ones.dtype), stride=self.hop)
        half = self.n_fft // 2
        # Behind the end of a shorter item there is no window at all; its audio there is 0, not 0 / 0.
        audio = audio / envelope.clamp(min=1e-11)
        audio = audio[:, 0, half : audio.shape[-1] - half]
        if frame_mask is None:
            return audio
        ends = (frame_mask.sum(dim=2) - 1) * self.hop
        return audio * (torch.arange(audio.shape[1], device=audio.device) < ends)
