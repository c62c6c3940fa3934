"""nuanced_core.config.settings: immutable settings, constraints between them, and paths with ``~``."""

from pathlib import Path
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
        ({"data": {"val_voices": ["af_sky", "am_puck", "af_sky"]}}, "data.val_voices: .*af_sky stands twice"),
        ({"features": {"layers": [1, 2, 1]}}, "features.layers: .*1 stands twice"),
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
def test_a_leading_tilde_is_replaced_by_the_home_directory(
    section: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def validated(value: object) -> object:
        config = validate(RunConfig, {section: {name: value}}, "sweep.yaml")
        return getattr(getattr(config, section), name)

    assert validated("~/mine") == str(tmp_path / "mine")
    assert validated("~") == str(tmp_path)
    assert validated("a/~/b") == "a/~/b"
    assert validated("train") == "train"


def test_listed_sentences_are_texts_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = validate(RunConfig, {"data": {"sentences": ["~/a", "~ b"]}}, "sweep.yaml")
    assert config.data.sentences == ("~/a", "~ b")
