"""nuanced_core.config.settings: immutable settings, constraints between them, and paths with ``~``."""

from typing import Any

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.errors import ConfigError


def test_settings_are_immutable() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"data": {"val_voices": ["af_sky", "am_puck", "af_sky"]}}, "data.val_voices: .*af_sky is listed twice"),
        ({"features": {"layers": [1, 2, 1]}}, "features.layers: .*1 is listed twice"),
        ({"augment": {"snr_db": [20, 10]}}, "augment: .*the lowest comes first"),
        ({"encoder": {"pooling": "attentive", "heads": 4, "frame_width": 2}}, "4 heads cannot share 2 channels"),
        ({"features": {"channel": "mean"}}, "features.channel mean removes the mean of each clip"),
        ({"train": {"speak_every": 2}, "loss": {"style": 0}}, "train.speak_every 2: without loss.style"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RunConfig, data, "sweep.yaml")


@pytest.mark.parametrize(("section", "name"), [("models", "source"), ("data", "sentences"), ("data", "val_sentences")])
def test_paths_are_kept_as_they_are_written(section: str, name: str) -> None:
    config = validate(RunConfig, {section: {name: "~/mine"}}, "sweep.yaml")
    assert getattr(getattr(config, section), name) == "~/mine"
