"""The models that a run needs: their files are fetched and verified together, each model is loaded on first use."""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from nuanced_core.config.settings import Models
from nuanced_core.errors import ConfigError
from nuanced_core.hearing.whisper_features import WhisperFeatures
from nuanced_core.kokoro.model import DifferentiableKokoro
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.speakers.encoders import SpeakerEncoder, load_speaker_encoder
from nuanced_core.text.phonemes import Phonemizer, make_phonemizer
from nuanced_core.weights.fetch import (
    KokoroFiles,
    SpeakerEncoderFile,
    VoiceFiles,
    WhisperFile,
    fetch_kokoro,
    fetch_speaker_encoder,
    fetch_voices,
    fetch_whisper,
)

__all__ = ["ModelSet", "loaded_models", "resolve_device"]


@dataclass(frozen=True)
class ModelSet:
    """Kokoro, its voices, Whisper, speaker encoders and the phonemizer, on one device."""

    kokoro_files: KokoroFiles
    voice_files: VoiceFiles
    whisper_file: WhisperFile
    device: torch.device
    source: str = "auto"  # of the speaker encoders, which are fetched when they are needed
    _speaker_files: dict[str, SpeakerEncoderFile] = field(default_factory=dict, init=False, repr=False, compare=False)
    _speaker_encoders: dict[str, SpeakerEncoder] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def fetch(cls, models: Models, device: torch.device | str) -> "ModelSet":
        """Fetch the model files that the settings name, or find them in the cache.

        Raises:
            WeightsError: a file is not available, or its hash is wrong.
        """
        return cls(
            fetch_kokoro(models.source),
            fetch_voices(models.source),
            fetch_whisper(models.whisper, models.source),
            torch.device(device),
            models.source,
        )

    @cached_property
    def kokoro(self) -> DifferentiableKokoro:
        """Kokoro, frozen and differentiable."""
        return DifferentiableKokoro.load(self.kokoro_files.config, self.kokoro_files.model, self.device)

    @cached_property
    def voices(self) -> VoiceBank:
        """The available stock voices."""
        return VoiceBank(self.voice_files.packs, self.voice_files.source)

    @cached_property
    def whisper(self) -> WhisperFeatures:
        """Whisper's encoder, needed only to compute features that the cache lacks."""
        return WhisperFeatures.load(self.whisper_file.path, self.device)

    @cached_property
    def phonemizer(self) -> Phonemizer:
        """The converter of sentences to phonemes."""
        return make_phonemizer()

    def speaker_encoder(self, name: str) -> SpeakerEncoder:
        """Return a speaker encoder (see ``SPEAKER_ENCODERS``), fetched and loaded on the first call.

        Raises:
            WeightsError: there is no speaker encoder of this name, or its file is not available or another one.
            ConfigError: it only judges.
        """
        if name not in self._speaker_encoders:
            path = self._speaker_file(name).path
            self._speaker_encoders[name] = load_speaker_encoder(path, name, self.device)
        return self._speaker_encoders[name]

    def speaker_sha256(self, name: str) -> str:
        """Return the SHA-256 of a speaker encoder's file, fetched on the first call.

        Raises:
            WeightsError: as ``speaker_encoder``.
        """
        return self._speaker_file(name).sha256

    def _speaker_file(self, name: str) -> SpeakerEncoderFile:
        if name not in self._speaker_files:
            self._speaker_files[name] = fetch_speaker_encoder(name, self.source)
        return self._speaker_files[name]

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each model file and the phonemizer's name, for the record of a sweep.

        Of the speaker encoders, those that have been used are in it.
        """
        return {
            "kokoro": self.kokoro_files.sha256,
            f"whisper {self.whisper_file.name}": self.whisper_file.sha256,
            "phonemizer": self.phonemizer.name,
            **{f"speaker encoder {name}": file.sha256 for name, file in sorted(self._speaker_files.items())},
            **{f"voice {name}": digest for name, digest in sorted(self.voice_files.sha256.items())},
        }


def resolve_device(name: str) -> torch.device:
    """Return the device that ``train.device`` names; ``auto`` is the first GPU, or the CPU if there is none.

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
        raise ConfigError(f"train.device: {name!r} is not a device; set auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"train.device: {name!r}: this machine has {torch.cuda.device_count()} GPUs; set auto or cpu")
    return device


_loaded: dict[tuple[Models, str], ModelSet] = {}


def loaded_models(settings: Models, device: torch.device) -> ModelSet:
    """Return this process's models for the settings, fetched on the first call.

    They are kept for the next run, since loading Kokoro takes longer than a short trial should.

    Raises:
        WeightsError: as ``ModelSet.fetch``.
    """
    key = settings, str(device)
    if key not in _loaded:
        _loaded[key] = ModelSet.fetch(settings, device)
    return _loaded[key]
