"""Memory of a training step: measured in the process that takes it, and estimated for planning."""

import os
import platform
import resource
from contextlib import suppress
from pathlib import Path

import torch

from nuanced_core.audio import FRAMES_PER_SECOND, SAMPLES_PER_FEATURE_FRAME, WHISPER_RATE
from nuanced_core.config.settings import RunConfig
from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.hearing.whisper_features import feature_shape
from nuanced_core.kokoro.voices import STOCK_VOICES

__all__ = ["SECONDS_PER_PHONEME", "estimated_memory", "installed_memory", "peak_memory", "reset_peak_memory"]

# Fitted to `python -m tests.benchmarks.memory` (docs/LOG.md), rounded up.
BASE = 1.65e9  # bytes: Python, torch, Kokoro and the weights of its gradients
PER_CLIP = 0.13e9  # bytes per clip rendered in a step: prosody of its whole sentence
PER_SECOND = 0.16e9  # bytes per second of speech in a step
PER_SECOND_CHECKPOINTING = 0.08e9  # the same with train.checkpointing
SECONDS_PER_PHONEME = 0.09  # a slow voice's
LONGEST_SENTENCE = 20.0  # seconds; the longest built-in sentence
FEATURE_COPIES = 4  # of a batch's features: as read, normalised, bounded, and the gradient of a projection


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes in use since ``reset_peak_memory``: by this process on the CPU, by its tensors
    on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if platform.system() == "Linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes, since the start of the process


def reset_peak_memory(device: torch.device) -> None:
    """Reset ``peak_memory``; where the system cannot (macOS), it counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def estimated_memory(config: RunConfig) -> int:
    """Estimate the largest number of bytes that a trial uses.

    The sum of Kokoro, the activations of a step's audio loss per second of speech, the encoder with its gradient and
    Adam's two moments, and the features of a batch. Fitted on the CPU; not compared with measurements on a GPU.
    """
    train = config.train
    longest_clip = config.data.max_phonemes * SECONDS_PER_PHONEME
    seconds = longest_clip if train.window_frames == "full" else train.window_frames / FRAMES_PER_SECOND
    per_second = PER_SECOND_CHECKPOINTING if train.checkpointing else PER_SECOND
    speech = train.spoken * (PER_CLIP + seconds * per_second)
    whisper_layers, channels = feature_shape(config.models.whisper)
    choice = config.features.layers
    layers = whisper_layers if choice == "all" else 1 if choice == "last" else len(choice)
    frames = train.batch_size * min(longest_clip, LONGEST_SENTENCE) * WHISPER_RATE / SAMPLES_PER_FEATURE_FRAME
    features = frames * layers * channels * 4 * FEATURE_COPIES
    return int(BASE + speech + features + 16 * _parameter_count(config, layers, channels))


def _parameter_count(config: RunConfig, layers: int, channels: int) -> int:
    """Return the number of parameters of a run's encoder."""
    with torch.device("meta"):
        encoder = StyleEncoder(
            StyleEncoderConfig(
                encoder=config.encoder,
                features=config.features,
                whisper=config.models.whisper,
                layers=tuple(range(layers)),
                channels=channels,
                voices=STOCK_VOICES,
            )
        )
    return sum(parameter.numel() for parameter in encoder.parameters())


def installed_memory(device: torch.device) -> int:
    """Return the bytes of memory of this machine, or of the GPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
