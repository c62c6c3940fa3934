"""nuanced_core.config.validation: strict types, and messages that name the setting, its value and the fix."""

from typing import Any

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import dotted_names, spelling_hint, validate
from nuanced_core.errors import ConfigError


@pytest.mark.parametrize(
    ("data", "message"),
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
        ({"data": {"sentences": ["a", 3]}}, 'data.sentences: ["a", 3]: input should be a valid string'),
        ({"data": {"val_sentences": 3}}, "data.val_sentences: 3: input should be a valid string or"),
        ({"models": {"source": 3}}, "models.source: 3: input should be a valid string"),
        ({"data": 3}, "data: 3: input should be an object"),
        ({"loss": {"stft": 0, "style": 0}}, "all weights are 0, so there is nothing to learn"),
        ({"objective": {"stft": 0, "style": 0}}, "all weights are 0"),
        ({"train": {"seed": 10**30}}, "train.seed"),
        ({"encoder": {"pooling": "men"}}, "encoder.pooling: \"men\": input should be 'mean'"),
        ({"train": {"epochs": {1, 2}}}, "Object of type set is not JSON serializable"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(RunConfig, data, "sweep.yaml")
    assert str(error.value).startswith("sweep.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_dotted_names_list_every_setting_once() -> None:
    names = list(dotted_names(RunConfig))
    assert len(names) == len(set(names)) > 25
    assert {"encoder.width", "train.window_frames", "data.val_voices"} <= set(names)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("encoder.widht", "did you mean encoder.width?"),
        ("widht", "did you mean encoder.width?"),  # compared with the last part of a name too
        ("zzz", "there are: encoder.width, train.epochs"),
    ],
)
def test_a_spelling_hint_suggests_the_most_similar_name_or_lists_all(name: str, hint: str) -> None:
    assert spelling_hint(name, ["encoder.width", "train.epochs"]) == hint


def test_a_text_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(RunConfig, {"data": {"voices": ["af_heart", "a\udcff"]}}, "a.yaml")
    assert str(caught.value) == "a.yaml: data.voices: 'a\\udcff': holds bytes that are not UTF-8; rename it"
