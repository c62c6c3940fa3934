"""Kokoro's own model and two sentences, for comparison with the real weights."""

import json
from typing import Any

import kokoro.model
import pytest
import torch

from nuanced_core.data.model_set import ModelSet
from tests.nuanced_core.kokoro.sentences import SENTENCES, Sentences


@pytest.fixture(scope="module")
def reference(models: ModelSet) -> Any:
    """The package's own ``KModel``, loaded from the same files in the same process."""
    config = json.loads(models.kokoro_files.config.read_text(encoding="utf-8"))
    return kokoro.model.KModel("hexgrad/Kokoro-82M", config=config, model=str(models.kokoro_files.model)).eval()


@pytest.fixture(scope="module")
def sentences(models: ModelSet) -> Sentences:
    """Phonemes and styles (2, 256) of ``SENTENCES``."""
    phonemes = [models.phonemizer(text) for text, _, _ in SENTENCES]
    styles = [models.voices.style(v, len(p)) for (_, v, _), p in zip(SENTENCES, phonemes, strict=True)]
    return phonemes, torch.stack(styles)
