"""Whisper's encoder states, layer by layer, for clips of any length.

Whisper was trained on clips padded with silence to 30 s. Padding takes ten times as long as a clip of 3 s and says
nothing of its voice, so a clip is heard at its own length. A longer one is heard in equal segments of at most 4 s, the
length of what a StyleEncoder is trained on: Whisper's states tell how far into a clip a frame lies.

Dimensions: M mel bands, T feature frames (20 ms), L layers (0 is the input of the first block, the last one is the
encoder's output), D channels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nuanced_core.audio import SAMPLES_PER_FEATURE_FRAME, WHISPER_RATE

__all__ = ["FeatureStatistics", "WhisperFeatures", "feature_shape"]

# (L, D) by the first word of a model's name: openai-whisper's encoders.
_SHAPES = {"tiny": (5, 384), "base": (7, 512), "small": (13, 768), "medium": (25, 1024), "large": (33, 1280)}
SEGMENT = 4 * WHISPER_RATE  # most samples that Whisper hears at once


def feature_shape(name: str) -> tuple[int, int]:
    """(L, D) of a Whisper model by its name, before it is there; of an unknown name those of the largest."""
    return _SHAPES.get(name.split(".")[0].split("-")[0], _SHAPES["large"])


@dataclass(frozen=True)
class FeatureStatistics:
    """Of the training clips' features: what normalises them."""

    mean: Tensor  # (L, D)
    std: Tensor  # (L, D)


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
        frames = -(-len(audio) // SAMPLES_PER_FEATURE_FRAME)
        segments = -(-len(audio) // SEGMENT)
        samples = -(-frames // segments) * SAMPLES_PER_FEATURE_FRAME
        return torch.cat([self._segment(part) for part in torch.split(audio, samples)], dim=1)

    def _segment(self, audio: Tensor) -> Tensor:
        from whisper.audio import log_mel_spectrogram

        missing = -len(audio) % SAMPLES_PER_FEATURE_FRAME
        mel = log_mel_spectrogram(nn.functional.pad(audio.to(self.device), (0, missing)), self.mels)  # (M, 2T)
        encoder = self.encoder
        x = nn.functional.gelu(encoder.conv1(mel.unsqueeze(0)))
        x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)  # (1, T, D)
        x = x + encoder.positional_embedding[: x.shape[1]]
        states = [x]
        for block in encoder.blocks:
            states.append(block(states[-1]))
        states[-1] = encoder.ln_post(states[-1])
        return torch.cat(states).cpu()
