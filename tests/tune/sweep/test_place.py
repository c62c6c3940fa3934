"""tune.sweep.place: where a sweep may begin, what an existing one accepts, and who holds its lock."""

from pathlib import Path

import pytest

from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.errors import ConfigError
from tune.config.sweep_config import SETTINGS_FILE, SweepConfig, parse_sweep
from tune.sweep.place import SweepPlace

MODELS = {"kokoro": "a" * 64}


def config_in(outputs: str, *overrides: str) -> SweepConfig:
    data = {"search": {"encoder.width": [32, 64]}, "sweep": {"outputs": outputs, "trials": 1}}
    return parse_sweep(data, "a.yaml", overrides)


def begun(outputs: Path) -> Path:
    """The folder of a sweep that has begun, and whose driver has left."""
    config = config_in(str(outputs))
    with SweepPlace.new(config.sweep, "a") as place:
        place.open(config, MODELS)
        return place.folder


def test_a_new_place_writes_nothing_until_it_is_opened_and_is_locked_then(tmp_path: Path) -> None:
    config = config_in(str(tmp_path))
    with SweepPlace.new(config.sweep, "a") as place:
        assert place.saved is None and not any(tmp_path.iterdir())
        place.open(config, MODELS)
        assert place.saved == config
        assert read_yaml(place.folder / SETTINGS_FILE)["record"]["models"] == MODELS
        with pytest.raises(ConfigError, match="drives this sweep already"):
            SweepPlace.existing(place.folder)
    with SweepPlace.existing(place.folder) as again:
        assert again.saved == config


def test_outputs_in_the_home_folder_are_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with SweepPlace.new(config_in("~/sweeps").sweep, "a") as place:
        assert place.folder == tmp_path / "sweeps" / "a"
    shared = config_in(str(tmp_path), "sweep.shared=~/shared").sweep
    with SweepPlace.new(shared, "a") as place:
        assert place.is_shared and place.storage.location == str(tmp_path / "shared" / "a")


def test_other_model_files_than_those_of_the_beginning_are_refused(tmp_path: Path) -> None:
    with SweepPlace.existing(begun(tmp_path)) as place:
        config = place.settings_with([])
        place.open(config, MODELS)
        place.open(config, {"whisper": "b" * 64})  # a file that was not recorded may differ
        with pytest.raises(ConfigError, match="kokoro: not the file that the sweep began with"):
            place.open(config, {"kokoro": "b" * 64})


@pytest.mark.parametrize("record", [3, {"models": "none"}])
def test_a_record_that_somebody_edited_is_refused_in_one_line(tmp_path: Path, record: object) -> None:
    folder = begun(tmp_path)
    write_yaml(folder / SETTINGS_FILE, {**read_yaml(folder / SETTINGS_FILE), "record": record})
    with (
        SweepPlace.existing(folder) as place,
        pytest.raises(ConfigError, match=r"sweep\.yaml: record: .* restore it, or remove it"),
    ):
        place.open(place.settings_with([]), MODELS)


def test_changed_settings_are_saved_with_the_record_of_the_beginning(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    before = read_yaml(folder / SETTINGS_FILE)
    with SweepPlace.existing(folder) as place:
        place.save(place.settings_with(["sweep.trials=5"]))
    after = read_yaml(folder / SETTINGS_FILE)
    assert (after["sweep"]["trials"], after["record"]) == (5, before["record"])


def test_the_lock_is_released_if_the_settings_cannot_be_read(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    text = (folder / SETTINGS_FILE).read_text()
    (folder / SETTINGS_FILE).write_text("search: 3\n")
    with pytest.raises(ConfigError, match="search"):
        SweepPlace.existing(folder)
    (folder / SETTINGS_FILE).write_text(text)
    SweepPlace.existing(folder).__exit__(None, None, None)
