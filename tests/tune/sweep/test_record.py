"""tune.sweep.record and tune.sweep.single_run: a folder is there whole or not at all, and a run without Ray fills it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, DiskError, VoiceError
from tests.tune import toy
from tune.cluster.disk import check_disk
from tune.sweep.record import create_folder, new_folder
from tune.sweep.single_run import train_single_run


def test_a_folder_appears_with_its_settings_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    create_folder(folder, "sweep.yaml", {"trials": 3})
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        create_folder(tmp_path / "file" / "b", "sweep.yaml", {})
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(DiskError):
        create_folder(taken, "sweep.yaml", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_outputs_on_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="choose another --outputs"):
        check_disk(tmp_path / "file" / "b", 1)


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists already"):
        new_folder(tmp_path, "a")


def train(config: RunConfig, folder: Path, report: object, say: object) -> None:
    report(7, {"val/loss": 1.0})  # type: ignore[operator]


def test_a_single_run_leaves_settings_origin_and_curves(tmp_path: Path) -> None:
    said: list[str] = []
    folder = train_single_run(
        RunConfig(), outputs=tmp_path, name="one", prepare=toy.prepare, train=train, say=said.append
    )
    assert yaml.safe_load((folder / "config.yaml").read_text()) == RunConfig().model_dump(mode="json")
    record: Mapping[str, object] = yaml.safe_load((folder / "record.yaml").read_text())
    assert record["models"] == toy.ToyPrepared().hashes()
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(7, 1.0)]
    assert said[-1] == f"export: nuanced export {folder} -o models/one"


def test_a_run_that_cannot_be_prepared_writes_nothing(tmp_path: Path) -> None:
    def prepare(configs: Sequence[RunConfig], say: object) -> list[toy.ToyPrepared]:
        raise VoiceError("no such voice")

    with pytest.raises(VoiceError):
        train_single_run(RunConfig(), outputs=tmp_path, name="one", prepare=prepare, train=train, say=print)
    assert not list(tmp_path.iterdir())
