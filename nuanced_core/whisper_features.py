"""Whisper's encoder states, layer by layer, for clips of any length.

Whisper hears exactly 30 s at a time: a longer clip is cut into segments, each padded with silence to 30 s as
Whisper was trained, and the states of the padding are dropped.

Dimensions: T feature frames (20 ms), L layers (0 is the input of the first block, the last one is the encoder's
output), D channels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nuanced_core.audio import SAMPLES_PER_FEATURE_FRAME, WHISPER_RATE

__all__ = ["WhisperFeatures"]

SEGMENT = 30 * WHISPER_RATE  # samples that Whisper hears at once


class WhisperFeatures:
    """A frozen Whisper encoder.

    Args:
        model: a ``whisper.model.Whisper``; its decoder is not used.
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.encoder = model.encoder.to(self.device).eval().requires_grad_(False)
        self.mels: int = model.dims.n_mels
        self.layers: int = model.dims.n_audio_layer + 1
        self.channels: int = model.dims.n_audio_state

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "WhisperFeatures":
        """Whisper from a checkpoint of openai-whisper's form (see ``nuanced_core.weights``)."""
        import whisper

        return cls(whisper.load_model(str(path), device="cpu"), device)

    @torch.no_grad()
    def __call__(self, audio: Tensor) -> Tensor:
        """States (L, T, D) of audio (samples,) at 16 kHz; T = ceil(samples / 320)."""
        return torch.cat([self._segment(part) for part in torch.split(audio, SEGMENT)], dim=1)

    def _segment(self, audio: Tensor) -> Tensor:
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        frames = -(-len(audio) // SAMPLES_PER_FEATURE_FRAME)
        mel = log_mel_spectrogram(pad_or_trim(audio.to(self.device), SEGMENT), self.mels)
        encoder = self.encoder
        x = nn.functional.gelu(encoder.conv1(mel.unsqueeze(0)))
        x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)  # (1, 1500, D)
        x = x + encoder.positional_embedding
        states = [x]
        for block in encoder.blocks:
            states.append(block(states[-1]))
        states[-1] = encoder.ln_post(states[-1])
        return torch.cat(states)[:, :frames].cpu()
