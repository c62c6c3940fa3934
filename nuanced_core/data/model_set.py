"""The models that a run needs: their files fetched and checked at once, each loaded when first used."""

from dataclasses import dataclass
from functools import cached_property

import torch

from nuanced_core.config.settings import Models
from nuanced_core.errors import ConfigError
from nuanced_core.hearing.whisper_features import WhisperFeatures
from nuanced_core.kokoro.model import DifferentiableKokoro
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.text.phonemes import Phonemizer, make_phonemizer
from nuanced_core.weights.fetch import KokoroFiles, VoiceFiles, WhisperFile, fetch_kokoro, fetch_voices, fetch_whisper

__all__ = ["ModelSet", "loaded_models", "resolve_device"]


@dataclass(frozen=True)
class ModelSet:
    """Kokoro, its voices, Whisper and the phonemizer, on one device."""

    kokoro_files: KokoroFiles
    voice_files: VoiceFiles
    whisper_file: WhisperFile
    device: torch.device

    @classmethod
    def fetch(cls, models: Models, device: torch.device | str) -> "ModelSet":
        """The model files that the settings name, from the cache or from where they can be had.

        Raises:
            WeightsError: a file cannot be had, or is not what it should be.
        """
        return cls(
            fetch_kokoro(models.source),
            fetch_voices(models.source),
            fetch_whisper(models.whisper, models.source),
            torch.device(device),
        )

    @cached_property
    def kokoro(self) -> DifferentiableKokoro:
        """Kokoro, frozen and differentiable."""
        return DifferentiableKokoro.load(self.kokoro_files.config, self.kokoro_files.model, self.device)

    @cached_property
    def voices(self) -> VoiceBank:
        """The voices at hand."""
        return VoiceBank(self.voice_files.packs)

    @cached_property
    def whisper(self) -> WhisperFeatures:
        """Whisper's encoder; only rendering a clip for the first time needs it."""
        return WhisperFeatures.load(self.whisper_file.path, self.device)

    @cached_property
    def phonemizer(self) -> Phonemizer:
        """What turns sentences into phonemes."""
        return make_phonemizer()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each model file, and the phonemizer's name: what a sweep's results rest on."""
        return {
            "kokoro": self.kokoro_files.sha256,
            f"whisper {self.whisper_file.name}": self.whisper_file.sha256,
            "phonemizer": self.phonemizer.name,
            **{f"voice {name}": digest for name, digest in sorted(self.voice_files.sha256.items())},
        }


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU if there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"train.device: {name!r} is no device; take auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: {name!r}: this machine has {torch.cuda.device_count()} GPUs; take auto or cpu"
        )
    return device


_loaded: dict[tuple[Models, str], ModelSet] = {}


def loaded_models(settings: Models, device: str) -> ModelSet:
    """The models of this process: loading Kokoro takes longer than a short trial should."""
    if (settings, device) not in _loaded:
        _loaded[settings, device] = ModelSet.fetch(settings, device)
    return _loaded[settings, device]
