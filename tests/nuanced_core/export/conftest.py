"""A checkpoint of a small encoder, written without training."""

import math
from pathlib import Path

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.encoder.checkpoint import Checkpoint, write_checkpoint
from tests.nuanced_core.encoder.small_encoders import randomised_encoder


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_run: RunConfig) -> Path:
    encoder = randomised_encoder(pooling="mean_std", output="span")
    file = tmp_path / "a run" / "checkpoints" / "best.safetensors"
    file.parent.mkdir(parents=True)
    run = tiny_run.model_dump(mode="json")
    config = encoder.config.to_dict()
    write_checkpoint(file, Checkpoint(1, 3, math.inf, 1, {}, config, run, dict(encoder.state_dict()), {}))
    return file
