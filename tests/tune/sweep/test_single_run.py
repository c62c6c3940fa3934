"""tune.sweep.single_run: a run without Ray leaves the same folder as a trial."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, VoiceError
from tests.tune import toy
from tune.config.sweep_config import SETTINGS_FILE
from tune.sweep.lock import DriverLock
from tune.sweep.single_run import resume_single_run, train_single_run


def train(config: RunConfig, folder: Path, report: object) -> None:
    report(7, {"val/loss": 1.0})  # type: ignore[operator]


def test_a_single_run_leaves_settings_origin_and_curves(tmp_path: Path) -> None:
    result = train_single_run(RunConfig(), outputs=tmp_path, name="one", prepare=toy.prepare, train=train)
    folder = result.folder
    assert yaml.safe_load((folder / "config.yaml").read_text()) == RunConfig().model_dump(mode="json")
    record: Mapping[str, object] = yaml.safe_load((folder / "record.yaml").read_text())
    assert record["models"] == toy.ToyPrepared().hashes()
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(7, 1.0)]
    assert result.lines[-1] == f"export: nuanced export {folder} -o models/one"


def test_a_run_that_cannot_be_prepared_writes_nothing(tmp_path: Path) -> None:
    def prepare(configs: Sequence[RunConfig]) -> list[toy.ToyPrepared]:
        raise VoiceError("no such voice")

    with pytest.raises(VoiceError):
        train_single_run(RunConfig(), outputs=tmp_path, name="one", prepare=prepare, train=train)
    assert not list(tmp_path.iterdir())


def test_a_run_or_a_trial_that_another_process_trains_is_not_trained_twice(tmp_path: Path) -> None:
    folder = train_single_run(RunConfig(), outputs=tmp_path, name="one", prepare=toy.prepare, train=train).folder
    sweep = tmp_path / "sweep"
    trial = sweep / "trials" / "3"
    shutil.copytree(folder, trial)
    (sweep / SETTINGS_FILE).touch()
    for locked, resumed in ((folder, folder), (sweep, trial)):
        with closing(DriverLock(locked)), pytest.raises(ConfigError, match=rf"{locked}: process .* is at work here"):
            resume_single_run(resumed, prepare=toy.prepare, train=train)
        resume_single_run(resumed, prepare=toy.prepare, train=train)
