"""tune.trial.tensorboard: event files as TensorBoard's own reader sees them."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from tests.tune.sweep.test_driver import Swept, config_of
from tests.tune.toy import expected_loss
from tune.trial.tensorboard import TensorBoardReport


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def hparams(events: EventAccumulator) -> dict[str, object]:
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def test_scalars_are_read_back_at_their_steps(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        report(1, {"val/loss": 2.0, "loss/total": 3.0})
        report(5, {"val/loss": 1.5})
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(1, 2.0), (5, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(1, 3.0)]


def test_a_flush_shows_everything_before_the_end(tmp_path: Path) -> None:
    report = TensorBoardReport(tmp_path)
    report(1, {"val/loss": 2.0})
    report.flush()
    assert [e.step for e in read(tmp_path).Scalars("val/loss")] == [1]
    report.close()


def test_hparams_stand_in_the_same_run_from_the_start(tmp_path: Path) -> None:
    params = {"encoder.width": 64, "encoder.pooling": "mean", "data.voices": ["a", "b"], "on": True}
    report = TensorBoardReport(tmp_path, hparams=params)
    report.flush()
    events = read(tmp_path)
    assert hparams(events) == {
        "encoder.width": 64,
        "encoder.pooling": "mean",
        "data.voices": '["a", "b"]',
        "on": True,
    }
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    infos = metadata.parse_experiment_plugin_data(content).metric_infos
    assert {info.name.tag for info in infos} >= {"val/loss", "val/skill"}
    assert all(path.is_file() for path in tmp_path.iterdir())
    assert not events.Tags()["scalars"]
    report.close()


def test_each_trial_of_a_sweep_has_its_curves_and_settings(mixed: Swept) -> None:
    result, _ = mixed
    for trial in result.status["trials"]:
        events = read(result.folder / "trials" / str(trial["number"]))
        config = config_of(result, trial["number"])
        epochs = range(1, trial["epochs"] + 1)
        curve = [(e.step, e.value) for e in events.Scalars("val/loss")][: len(epochs)]
        assert curve == [(10 * n, pytest.approx(expected_loss(config, n))) for n in epochs]
        assert hparams(events)["encoder.width"] == trial["params"]["encoder.width"]
