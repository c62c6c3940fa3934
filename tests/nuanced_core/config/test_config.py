from pathlib import Path
from typing import Any

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import dotted_names, validate
from nuanced_core.config.yaml_files import apply_overrides, read_yaml, write_yaml
from nuanced_core.errors import ConfigError


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"train": {"learing_rate": 1}}, "train.learing_rate: unknown setting; did you mean train.learning_rate?"),
        ({"trian": {}}, "trian: unknown setting; did you mean train?"),
        ({"width": 3}, "width: unknown setting; did you mean encoder.width?"),
        ({"train": {"epochs": "3"}}, 'train.epochs: "3": input should be a valid integer'),
        ({"train": {"epochs": 2.5}}, "train.epochs: 2.5: input should be a valid integer"),
        ({"train": {"epochs": 0}}, "train.epochs: 0: input should be greater than or equal to 1"),
        ({"train": {"window_frames": "ful"}}, 'train.window_frames: "ful": input should be a valid integer or'),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate: NaN: input should be a finite number"),
        ({"data": {"voices": ["a", 3]}}, 'data.voices: ["a", 3]: input should be a valid string'),
        ({"data": 3}, "data: 3: input should be an object"),
        ({"loss": {"stft": 0, "style": 0}}, "all weights are 0, so there is nothing to learn"),
        ({"objective": {"stft": 0, "style": 0}}, "all weights are 0"),
        ({"train": {"seed": 10**30}}, "train.seed"),
        ({"encoder": {"pooling": "men"}}, "encoder.pooling: \"men\": input should be 'mean'"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(RunConfig, data, "sweep.yaml")
    assert str(error.value).startswith("sweep.yaml: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_never_change() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]


def test_a_config_survives_yaml(tmp_path: Path) -> None:
    config = validate(RunConfig, {"data": {"voices": ["af_heart"]}, "features": {"layers": [1, 2]}}, "x")
    write_yaml(tmp_path / "config.yaml", config.model_dump(mode="json"))
    assert validate(RunConfig, read_yaml(tmp_path / "config.yaml"), "x") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_yaml_without_its_traps(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1e-3\nb: no\nc: 2026-01-01\nd: true\ne: 1_000\n")
    assert read_yaml(file) == {"a": 0.001, "b": "no", "c": "2026-01-01", "d": True, "e": 1000}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2\n", "line 2: a is set twice"),
        ("a: [1\n", "line 2: expected ',' or ']'"),
        ("- 1\n", "holds a list; settings are 'name: value' lines"),
        ("1: 2\n", "line 1: the name 1 is not a word"),
        ("extends: a.yaml\n", "extends itself"),
        ("extends: [b]\n", "is not the name of a file"),
        ("extends: other.yaml\n", "other.yaml: no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(tmp_path / "a.yaml")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 3, spoken: 4}\ndata: {seed: 1}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ntrain: {epochs: 5}\n")
    assert read_yaml(tmp_path / "top.yaml") == {"train": {"epochs": 5, "spoken": 4}, "data": {"seed": 1}}


def test_overrides() -> None:
    data = {"train": {"epochs": 3}}
    assert apply_overrides(data, ["train.epochs=7", "data.voices=[af_heart, am_puck]", "train.learning_rate=1e-4"]) == {
        "train": {"epochs": 7, "learning_rate": 1e-4},
        "data": {"voices": ["af_heart", "am_puck"]},
    }
    assert data == {"train": {"epochs": 3}}
    for wrong in ("train.epochs", "=3", "train..epochs=3"):
        with pytest.raises(ConfigError, match="not of the form"):
            apply_overrides(data, [wrong])


def test_every_setting_has_a_name_and_a_default() -> None:
    names = list(dotted_names(RunConfig))
    assert len(names) == len(set(names)) > 25
    assert {"encoder.width", "train.window_frames", "data.val_voices"} <= set(names)
