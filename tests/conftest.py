"""Fixtures shared by the tests; the real models are fetched once into the user's cache."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from nuanced_core.config.settings import Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet
from tests.fakes import fake_models


@pytest.fixture(scope="session")
def models() -> ModelSet:
    """The real Kokoro, its voices and Whisper tiny.en, on the CPU."""
    return ModelSet.fetch(Models(), "cpu")


@pytest.fixture
def fakes(tmp_path: Path) -> SimpleNamespace:
    return fake_models(tmp_path / "voices")


@pytest.fixture
def tiny_run() -> RunConfig:
    """A run that the fakes finish in a second."""
    data = {
        "data": {
            "voices": ["af_heart", "am_fenrir", "am_michael", "af_bella"],
            "val_voices": ["af_sky", "bm_lewis"],
            "sentences": ["Red door.", "A blue window."],
            "val_sentences": ["Green hills.", "No rain."],
        },
        "augment": {"copies": 0},
        "encoder": {"width": 8, "depth": 1},
        "train": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "spoken": 2, "window_frames": 16},
        "objective": {"window_frames": 16},
    }
    return validate(RunConfig, data, "tiny")
