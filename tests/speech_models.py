"""The shipped encoder with the session's models."""

import json
from pathlib import Path

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.speech.models import SpeechModels

__all__ = ["shipped_speech"]

SHIPPED = Path(__file__).parents[1] / "models" / "default"


def shipped_speech(models: ModelSet) -> SpeechModels:
    """Return ``models/default`` with models that are loaded already."""
    run = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))["run"]
    return SpeechModels(
        StyleEncoder.from_pretrained(SHIPPED).to(models.device), models, validate(RunConfig, run, "run")
    )
