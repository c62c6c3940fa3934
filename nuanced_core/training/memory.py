"""How much memory a training step takes: measured where it runs, and foretold for planning."""

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
PER_CLIP = 0.13e9  # bytes per clip spoken in a step: prosody of its whole sentence
PER_SECOND = 0.16e9  # bytes per second of speech in a step
PER_SECOND_CHECKPOINTING = 0.08e9
SECONDS_PER_PHONEME = 0.09  # of a slow voice
LONGEST_SENTENCE = 20.0  # seconds, of the built-in ones
COPIES_OF_FEATURES = 4  # of a batch: as read, normalised, bounded, and the gradient of a projection


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use since ``reset_peak_memory``: of this process on the CPU, of its tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if platform.system() == "Linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes, since the process began


def reset_peak_memory(device: torch.device) -> None:
    """Let ``peak_memory`` begin anew; without a way to, it goes on since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def estimated_memory(config: RunConfig) -> int:
    """Bytes that a trial will take at most: Kokoro, what a step's audio loss keeps of each second spoken, the encoder
    with its gradient and Adam's two moments, and the features of a batch.

    It was fitted on the CPU; on a GPU it was never compared.
    """
    train = config.train
    longest = config.data.max_phonemes * SECONDS_PER_PHONEME
    seconds = longest if train.window_frames == "full" else train.window_frames / FRAMES_PER_SECOND
    per_second = PER_SECOND_CHECKPOINTING if train.checkpointing else PER_SECOND
    spoken = train.spoken * (PER_CLIP + seconds * per_second)
    most = min(longest, LONGEST_SENTENCE)
    layers, channels = feature_shape(config.models.whisper)
    choice = config.features.layers
    heard = layers if choice == "all" else 1 if choice == "last" else len(choice)
    frames = train.batch_size * most * WHISPER_RATE / SAMPLES_PER_FEATURE_FRAME
    features = frames * heard * channels * 4 * COPIES_OF_FEATURES
    return int(BASE + spoken + features + 16 * _parameters(config, heard, channels))


def _parameters(config: RunConfig, heard: int, channels: int) -> int:
    """Numbers that a run's encoder learns."""
    with torch.device("meta"):
        encoder = StyleEncoder(
            StyleEncoderConfig(
                encoder=config.encoder,
                features=config.features,
                whisper=config.models.whisper,
                layers=tuple(range(heard)),
                channels=channels,
                voices=STOCK_VOICES,
            )
        )
    return sum(parameter.numel() for parameter in encoder.parameters())


def installed_memory(device: torch.device) -> int:
    """Bytes of memory that this machine, or its GPU, has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
