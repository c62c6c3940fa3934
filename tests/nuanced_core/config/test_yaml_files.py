"""nuanced_core.config.yaml_files: strict YAML, ``extends``, and overrides."""

from pathlib import Path

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides, read_yaml, write_yaml
from nuanced_core.errors import ConfigError, DiskError

NO_VALUES = ("0x_", "!!int foo", "!!int ''", "!!float x", "!!bool x", "!!timestamp x")


def test_written_settings_are_read_back(tmp_path: Path) -> None:
    config = validate(RunConfig, {"data": {"voices": ["af_heart"]}, "features": {"layers": [1, 2]}}, "x")
    write_yaml(tmp_path / "config.yaml", config.model_dump(mode="json"))
    assert validate(RunConfig, read_yaml(tmp_path / "config.yaml"), "x") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_writing_into_a_missing_folder_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"absent/a\.yaml: cannot be written: No such file"):
        write_yaml(tmp_path / "absent" / "a.yaml", {})


def test_values_have_the_types_that_a_user_expects(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1e-3\nb: no\nc: 2026-01-01\nd: true\ne: 1_000\n")
    assert read_yaml(file) == {"a": 0.001, "b": "no", "c": "2026-01-01", "d": True, "e": 1000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: a is set twice"),
        ("a: [1\n", "line 2: expected ',' or ']'"),
        pytest.param(f"a: {'[' * 500}", "a.yaml: is nested too deeply; write settings", id="nested"),
        pytest.param(f"a: {'9' * 5_000}", "a.yaml: has a number of too many digits; shorten it", id="digits"),
        *((f"a: {value}\n", "a.yaml: has a value that is not of its type") for value in NO_VALUES),
        ("- 1\n", "contains a list; write settings as 'name: value' lines"),
        ("1: 2\n", "line 1: the name 1 is not a string"),
        ("extends: a.yaml\n", "extends itself"),
        ("extends: [b]\n", "is not the name of a file"),
        ("extends: other.yaml\n", "other.yaml: no such file"),
        ("extends: ~no-such-user/other.yaml\n", "~no-such-user/other.yaml: no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(tmp_path / "a.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_overrides_the_settings_of_the_file_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 3, spoken: 4}\ndata: {seed: 1}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ntrain: {epochs: 5}\n")
    assert read_yaml(tmp_path / "top.yaml") == {"train": {"epochs": 5, "spoken": 4}, "data": {"seed": 1}}


def test_extends_is_relative_to_the_extending_file_or_to_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder, seed in (("home", 1), ("work", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.yaml").write_text(f"data: {{seed: {seed}}}\n")
    file = tmp_path / "work" / "top.yaml"
    for base, seed in (("~/base.yaml", 1), ("base.yaml", 2), ("../home/base.yaml", 1)):
        file.write_text(f"extends: {base}\n")
        assert read_yaml(file) == {"data": {"seed": seed}}


def test_overrides_are_merged_into_a_copy() -> None:
    data = {"train": {"epochs": 3}}
    assert apply_overrides(data, ["train.epochs=7", "data.voices=[af_heart, am_puck]", "train.learning_rate=1e-4"]) == {
        "train": {"epochs": 7, "learning_rate": 1e-4},
        "data": {"voices": ["af_heart", "am_puck"]},
    }
    assert data == {"train": {"epochs": 3}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "does not have the form section.name=value"),
        ("=3", "does not have the form"),
        ("train..epochs=3", "does not have the form"),
        ("train.epochs=[3", "--set train.epochs=\\[3: line 1: "),
        *((f"a={value}", "has a value that is not of its type; write it without a tag") for value in NO_VALUES),
        pytest.param(f"a={'[' * 500}", "^--set a=\\[{198}…: is nested too deeply", id="nested"),
    ],
)
def test_an_override_that_cannot_be_read_is_an_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({}, [override])
