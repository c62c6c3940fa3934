"""Whisper's encoder states, of all layers or some, for clips of any length.

Whisper was trained on clips padded with silence to 30 s. For a clip of 3 s that takes ten times as long and adds
nothing about the voice, so clips are encoded without padding. Longer clips are encoded in equal segments of at most
4 s, the length that a StyleEncoder is trained on, since Whisper's states depend on a frame's position in its clip.

Dimensions: M mel bands, T feature frames (20 ms), L layers (0 is the input of the first block, the last one is the
encoder's output), D channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nuanced_core.audio import SAMPLES_PER_FEATURE_FRAME, WHISPER_RATE

__all__ = ["FeatureStatistics", "WhisperFeatures", "feature_shape"]

# (L, D) of openai-whisper's encoders, by the first word of a model's name.
_SHAPES = {"tiny": (5, 384), "base": (7, 512), "small": (13, 768), "medium": (25, 1024), "large": (33, 1280)}
SEGMENT = 4 * WHISPER_RATE  # samples; the longest segment that is encoded at once
BLOCK = 8  # segments whose states are in memory together


def feature_shape(name: str) -> tuple[int, int]:
    """Return (L, D) of a Whisper model by its name, without its file; for an unknown name, those of the largest."""
    return _SHAPES.get(name.split(".")[0].split("-")[0], _SHAPES["large"])


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and standard deviation of the training clips' features, which normalise them."""

    mean: Tensor  # (L, D)
    std: Tensor  # (L, D)


class WhisperFeatures:
    """Frozen Whisper encoder that returns the states of its layers.

    Args:
        model: a ``whisper.model.Whisper``; its decoder is not used.
        device: device that the encoder is moved to.
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.encoder = model.encoder.to(self.device).eval().requires_grad_(False)
        self.mels: int = model.dims.n_mels
        self.layers: int = model.dims.n_audio_layer + 1
        self.channels: int = model.dims.n_audio_state

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "WhisperFeatures":
        """Load a checkpoint in openai-whisper's format (see ``nuanced_core.weights``)."""
        import whisper

        return cls(whisper.load_model(str(path), device="cpu"), device)

    def __call__(self, audio: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """Encode audio (samples,) at 16 kHz to states (L, T, D), T = ceil(samples / 320), on the CPU.

        Args:
            layers: the layers to return, in this order; default: all. Those above the last one are not computed.
        """
        read = tuple(range(self.layers)) if layers is None else tuple(layers)
        frames = -(-len(audio) // SAMPLES_PER_FEATURE_FRAME)
        states = torch.empty(len(read), frames, self.channels)
        start = 0
        for segment in self._segments(audio, read):
            states[:, start : start + segment.shape[1]] = segment
            start += segment.shape[1]
        return states

    def blocks(self, audio: Tensor, layers: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Encode audio as calling does, and yield the states (L, t, D) of at most 32 s at a time.

        Memory then does not grow with the length of the clip. A clip of at most 32 s is one block.
        """
        read = tuple(range(self.layers)) if layers is None else tuple(layers)
        segments = self._segments(audio, read)
        while block := list(islice(segments, BLOCK)):
            yield torch.cat(block, dim=1)
            block.clear()  # before the next one is encoded

    def _segments(self, audio: Tensor, layers: Sequence[int]) -> Iterator[Tensor]:
        """Yield the states (L, t, D) of equal segments of a clip, on the CPU."""
        frames = -(-len(audio) // SAMPLES_PER_FEATURE_FRAME)
        segments = -(-len(audio) // SEGMENT)
        samples = -(-frames // segments) * SAMPLES_PER_FEATURE_FRAME
        for part in torch.split(audio, samples):
            with torch.no_grad():
                states = self.encode_segment(part, layers)
            yield states.cpu()

    def encode_segment(self, audio: Tensor, layers: Sequence[int]) -> Tensor:
        """Encode audio (samples,) of at most 30 s to states (L, t, D) of the given layers, differentiable in it."""
        from whisper.audio import log_mel_spectrogram

        padding = -len(audio) % SAMPLES_PER_FEATURE_FRAME
        mel = log_mel_spectrogram(nn.functional.pad(audio.to(self.device), (0, padding)), self.mels)  # (M, 2T)
        encoder = self.encoder
        x = nn.functional.gelu(encoder.conv1(mel.unsqueeze(0)))
        x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)  # (1, T, D)
        x = x + encoder.positional_embedding[: x.shape[1]]
        states = {0: x} if 0 in layers else {}
        for layer, block in enumerate(encoder.blocks[: max(layers)], start=1):
            x = block(x)
            if layer in layers:
                states[layer] = encoder.ln_post(x) if layer == self.layers - 1 else x
        return torch.cat([states[layer] for layer in layers])
