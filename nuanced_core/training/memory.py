"""Memory of a training step: measured in the process that takes it, and estimated for planning."""

import platform
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nuanced_core.audio import FRAMES_PER_SECOND, SAMPLES_PER_FEATURE_FRAME, WHISPER_RATE
from nuanced_core.config.settings import RunConfig
from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.hearing.whisper_features import feature_shape
from nuanced_core.kokoro.voices import STOCK_VOICES

__all__ = [
    "MEMORY_SETTINGS",
    "SECONDS_PER_PHONEME",
    "estimated_host_memory",
    "estimated_memory",
    "peak_memory",
    "reset_peak_memory",
]

# The settings that an estimate depends on: names, or beginnings of names.
MEMORY_SETTINGS = (
    "data.max_phonemes",
    "data.people",
    "encoder.",
    "features.",
    "loss.hearing",
    "loss.pitch",
    "loss.rate",
    "loss.speaker",
    "loss.surrogate",
    "models.whisper",
    "train.batch_size",
    "train.checkpointing",
    "train.people",
    "train.spoken",
    "train.window_frames",
)

# Fitted to `python -m tests.benchmarks.memory` (docs/LOG.md), rounded up.
BASE = 1.65e9  # bytes: Python, torch, Kokoro and the weights of its gradients
PER_CLIP = 0.13e9  # bytes per clip rendered in a step: prosody of its whole sentence
PER_SECOND = 0.16e9  # bytes per second of speech in a step
PER_SECOND_CHECKPOINTING = 0.08e9  # the same with train.checkpointing
PER_SPEAKER_ENCODER = 0.06e9  # bytes of a speaker encoder, and as much again per second that it hears in a step
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
    Adam's two moments, the features of a batch, and the same for people. Fitted on the CPU; not compared with
    measurements on a GPU.
    """
    train = config.train
    longest_clip = _longest_clip(config)
    seconds = longest_clip if train.window_frames == "full" else train.window_frames / FRAMES_PER_SECOND
    speech = train.spoken * (PER_CLIP + seconds * _per_second(config)) + _people_memory(config)
    return int(BASE + speech + _feature_memory(config) + 16 * _parameter_count(config))


def estimated_host_memory(config: RunConfig) -> int:
    """Estimate the largest number of bytes that a trial's process takes of the machine's memory.

    On the CPU that is everything. On a GPU it is Python, torch, Kokoro before it is copied to the GPU, and the features
    of a batch; that is not compared with measurements.
    """
    on_gpu = config.train.device.startswith("cuda")
    return int(BASE + _feature_memory(config)) if on_gpu else estimated_memory(config)


def _people_memory(config: RunConfig) -> float:
    """Return the bytes that what is spoken in people's voices takes, and the encoders that hear it."""
    if config.data.people is None:
        return 0.0
    loss, train = config.loss, config.train
    encoders = 1 + len(set(config.features.speaker_encoders) | set(loss.speaker_encoders))  # and the judge
    seconds = 0.0
    if loss.speaker or loss.rate or loss.hearing or (loss.pitch and not loss.surrogate):
        seconds = train.people_spoken * train.people_frames / FRAMES_PER_SECOND
    spoken = train.people_spoken * PER_CLIP if seconds else 0.0
    heard = seconds * len(loss.speaker_encoders) * PER_SPEAKER_ENCODER
    return encoders * PER_SPEAKER_ENCODER + spoken + seconds * _per_second(config) + heard


def _per_second(config: RunConfig) -> float:
    return PER_SECOND_CHECKPOINTING if config.train.checkpointing else PER_SECOND


def _longest_clip(config: RunConfig) -> float:
    return config.data.max_phonemes * SECONDS_PER_PHONEME


def _feature_memory(config: RunConfig) -> float:
    """Return the bytes that the features of a batch take, of clips or of people."""
    layers, channels = _feature_shape(config)
    seconds = config.train.batch_size * min(_longest_clip(config), LONGEST_SENTENCE)
    if config.data.people is not None:
        seconds = max(seconds, config.train.people * config.data.people_seconds)
    return seconds * WHISPER_RATE / SAMPLES_PER_FEATURE_FRAME * layers * channels * 4 * FEATURE_COPIES


def _feature_shape(config: RunConfig) -> tuple[int, int]:
    """Return the number of layers that a run uses of Whisper, and their channels."""
    whisper_layers, channels = feature_shape(config.models.whisper)
    choice = config.features.layers
    return whisper_layers if choice == "all" else 1 if choice == "last" else len(choice), channels


class _WithoutInitialisation(TorchFunctionMode):
    """Skips torch.nn.init, which on the meta device would load TorchDynamo: that takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _parameter_count(config: RunConfig) -> int:
    """Return the number of parameters of a run's encoder."""
    layers, channels = _feature_shape(config)
    with torch.device("meta"), _WithoutInitialisation():
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
