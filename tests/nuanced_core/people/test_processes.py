"""Recordings heard by several processes, with the real models."""

from pathlib import Path

import pytest
import torch

from nuanced_core.config.settings import Data
from nuanced_core.data.cache import Cache
from nuanced_core.data.model_set import ModelSet
from nuanced_core.people.corpus import find_people
from nuanced_core.people.hearing import hear
from tests.nuanced_core.people.conftest import write


def test_several_processes_hear_the_same_as_one(
    models: ModelSet, recorded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {name: list(files) for name, files in find_people(recorded).speakers.items()}
    files["ben"] = [write(tmp_path / "short.flac", torch.rand(8000) / 2)]
    del files["carla"]
    settings = Data(people_seconds=2.5)
    one, several = (
        hear(files, models, Cache(tmp_path / str(n)), settings, workers=n, encoders=(), for_training=False)
        for n in (1, 2)
    )
    assert [r.speaker for r in several.recordings] == ["anna", "felix"] and several.skipped == one.skipped
    for a, b in zip(one.recordings, several.recordings, strict=True):
        assert (a.key, a.voice) == (b.key, b.voice)
        torch.testing.assert_close(a.embeddings["campplus"], b.embeddings["campplus"])
        torch.testing.assert_close(one.states(a, (1,)), several.states(b, (1,)), rtol=1e-2, atol=1e-2)
    assert capfd.readouterr().err == ""
