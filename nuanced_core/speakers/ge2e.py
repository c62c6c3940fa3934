"""Resemblyzer's speaker encoder: an LSTM trained with generalised end-to-end loss (Wan et al. 2018, arXiv:1710.10467).

Dimensions: B batch, P windows of a clip, T = 160 frames of 10 ms in a window.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuanced_core.speakers.spectra import HOP, LIBROSA_MELS, MelPower

__all__ = ["GE2E"]

SIZE = 256  # of an embedding and of the LSTM's state
LAYERS = 3
WINDOW = 160  # frames
STEP = 77  # frames between windows: 1.3 windows a second
MIN_COVERAGE = 0.75  # of the last window by the clip, or it is left out


class GE2E(nn.Module):
    """The model of Resemblyzer, whose published parameters have these names; frozen.

    Args:
        parameters: the ``model_state`` of the published checkpoint; what belongs to its training is ignored.

    Raises:
        RuntimeError: a parameter is missing or of another shape.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.mel = MelPower()
        self.lstm = nn.LSTM(LIBROSA_MELS, SIZE, LAYERS, batch_first=True)
        self.linear = nn.Linear(SIZE, SIZE)
        self.load_state_dict({n: p for n, p in parameters.items() if n.startswith(("lstm.", "linear."))})
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "GE2E":
        """Keep the LSTM in training mode, which cuDNN's backward requires and which changes nothing without dropout."""
        super().train(mode)
        self.lstm.train()
        return self

    def forward(self, audio: Tensor) -> Tensor:
        """Return embeddings (B, 256) of norm 1 of audio (B, samples) at 16 kHz, where speech has a level of -30 dB."""
        starts = window_starts(audio.shape[1])
        padding = max(0, (starts[-1] + WINDOW) * HOP - audio.shape[1])
        mels = self.mel(F.pad(audio, (0, padding)))
        windows = torch.stack([mels[:, start : start + WINDOW] for start in starts], dim=1)  # (B, P, T, 40)
        _, (state, _) = self.lstm(windows.flatten(0, 1))
        embeddings = F.normalize(F.relu(self.linear(state[-1])), dim=1)  # (B * P, 256)
        return F.normalize(embeddings.view(len(audio), len(starts), SIZE).mean(dim=1), dim=1)


def window_starts(samples: int) -> list[int]:
    """Return the first frame of each window of a clip, as ``VoiceEncoder.compute_partial_slices`` does."""
    frames = samples // HOP + 1
    starts = list(range(0, max(1, frames - WINDOW + STEP + 1), STEP))
    if len(starts) > 1 and samples - starts[-1] * HOP < MIN_COVERAGE * WINDOW * HOP:
        del starts[-1]
    return starts
