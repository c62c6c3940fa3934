"""tune.load_sweep: data frames, curves, figures and the best encoder of sweeps in every state."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import tune
from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.training.run import BEST
from tests.tune.analysis.made_sweeps import SEARCH, Outcome, made_sweep
from tune.analysis.loaded import LoadedSweep, load_sweep
from tune.analysis.trial_files import COLUMNS
from tune.config.sweep_config import SETTINGS_FILE
from tune.config.sweep_settings import SweepSettings
from tune.search.study import open_study

OUTCOMES: list[Outcome] = [
    ([1.5, 0.75], "complete"),
    ([1.5, 1.25], "pruned"),
    ([1.75], "step 17: nan"),
    ([1.25, 0.5], "complete"),
    ([0.25], "running"),
]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_sweep(tmp_path_factory.mktemp("made") / "toy", OUTCOMES, "interrupted")


def test_load_sweep_is_public_and_says_what_is_no_sweep(tmp_path: Path) -> None:
    assert tune.load_sweep is load_sweep
    with pytest.raises(ConfigError, match=r"not the folder of a sweep"):
        load_sweep(tmp_path)


def test_each_trial_is_a_row_with_its_settings_and_metrics(interrupted: Path) -> None:
    trials = load_sweep(str(interrupted)).trials()
    assert list(trials["number"]) == [0, 1, 2, 3, 4]
    assert list(trials["state"]) == ["complete", "pruned", "failed", "complete", "interrupted"]
    assert list(trials["value"])[:2] == [0.75, 1.25]
    assert pd.isna(trials["value"][2])
    assert list(trials["epochs"]) == [2, 2, 1, 2, 1]
    assert trials["error"][2] == "step 17: nan"
    assert trials["val/stft"][0] == 0.375
    assert trials["seconds"][:4].ge(0).all() and pd.isna(trials["seconds"][4])  # an interrupted trial has not ended
    settings = ["train.learning_rate", "encoder.width", "encoder.pooling", "features.layers", "encoder.heads"]
    assert set(settings) <= set(trials.columns)
    for pooling, heads in zip(trials["encoder.pooling"], trials["encoder.heads"], strict=True):
        assert pd.isna(heads) == (pooling == "mean")  # a conditional setting is missing where it is not searched
    assert {str(layers) for layers in trials["features.layers"]} <= {"[1, 2]", "all"}


def test_baselines_are_beside_the_best_trial(interrupted: Path) -> None:
    frame = load_sweep(interrupted).baselines()
    rows = ["best trial (3)", "mean voice", "nearest voice", "ridge regression", "oracle"]
    assert list(frame.index) == rows
    assert list(frame["loss"]) == [0.5, 2.0, 1.5, 1.25, 0.125]
    assert frame.loc["best trial (3)", "style"] == 2.0
    assert "pitch" not in frame.columns  # nobody has it


def test_curves_are_those_of_the_event_files(interrupted: Path) -> None:
    curves = load_sweep(interrupted).curves(["val/loss"])
    assert tuple(curves.columns) == COLUMNS
    found = {n: list(zip(group["step"], group["value"], strict=True)) for n, group in curves.groupby("trial")}
    assert found[0] == [(10, 1.5), (20, 0.75)]
    assert found[4] == [(10, 0.25)]
    everything = load_sweep(interrupted).curves()
    assert {"val/loss", "val/skill", "train/steps_per_second"} <= set(everything["tag"])


def test_curves_of_missing_unfinished_and_damaged_files(tmp_path: Path) -> None:
    folder = made_sweep(tmp_path / "toy", [([1.5, 0.75], "complete")] * 4)
    garbage = next((folder / "trials" / "3").glob("events.out*"))
    garbage.write_bytes(b"this is not an event file, but long enough for one" * 20)
    cut, damaged = (next((folder / "trials" / str(n)).glob("events.out*")) for n in (0, 1))
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-7])  # as if it were being written
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 0xFF
    damaged.write_bytes(bytes(content))
    for file in (folder / "trials" / "2").glob("events.out*"):
        file.unlink()
    found = load_sweep(folder).curves(["val/loss", "oracle/loss"])
    for number in (0, 1):  # only the last point, of the tag that was written last, is lost
        assert list(found[(found["trial"] == number) & (found["tag"] == "val/loss")]["value"]) == [1.5, 0.75]
    assert set(found["trial"]) == {0, 1}


def test_the_best_trial_has_its_settings_and_its_encoder(interrupted: Path) -> None:
    sweep = load_sweep(interrupted)
    assert sweep.best is not None
    assert (sweep.best.number, sweep.best.value, sweep.best.metrics["val/skill"]) == (3, 0.5, 0.75)
    config = sweep.best.config()
    assert config.train.learning_rate == sweep.best.params["train.learning_rate"]
    assert config.encoder.width == sweep.best.params["encoder.width"]
    encoder = sweep.best.encoder()
    assert isinstance(encoder, StyleEncoder) and not encoder.training
    assert all(torch.isfinite(parameter).all() for parameter in encoder.parameters())


def test_settings_are_known_without_the_trial_s_folder_and_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    folder = made_sweep(tmp_path / "toy", [([1.5], "complete"), ([1.25], "complete")])
    best = load_sweep(folder).best
    assert best is not None
    (folder / "trials" / "1" / "config.yaml").unlink()
    assert best.config().encoder.width == best.params["encoder.width"]
    (folder / "trials" / "1" / BEST).write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        best.encoder()
    (folder / "trials" / "1" / BEST).unlink()
    with pytest.raises(ConfigError, match="no such checkpoint"):
        best.encoder()


def test_figures_of_a_conditional_space_with_lists(interrupted: Path, tmp_path: Path) -> None:
    losses = [1.0 + 0.1 * (n % 7) for n in range(14)]
    outcomes: list[Outcome] = [([2 * loss, loss], "complete") for loss in losses]
    sweep = load_sweep(made_sweep(tmp_path / "toy", [*outcomes, ([2.5], "pruned")]))
    assert list(sweep.figures) == ["history", "importance", "slices", "contour", "parallel", "curves"]
    assert set(sweep.slices) == set(sweep.config.search.names) if sweep.config else False
    assert sweep.importance is not None
    assert sum(sweep.importance.shares.values()) == pytest.approx(1)
    assert (sweep.importance.top, sweep.importance.complete, sweep.importance.is_unsure) == (5, 14, True)
    names = [trace.name for trace in sweep.figures["curves"].data]
    assert "stopped by the pruner" in names and f"best trial ({sweep.best.number})" in names if sweep.best else False
    lines = {trace.name for trace in sweep.figures["history"].data}
    assert {"mean voice", "nearest voice", "ridge regression", "oracle"} <= lines


def test_a_single_complete_trial_and_none_at_all(interrupted: Path, tmp_path: Path) -> None:
    assert "history" in load_sweep(interrupted).figures
    empty = load_sweep(made_sweep(tmp_path / "empty", [], "running"))
    assert (empty.best, empty.figures, empty.slices, empty.importance) == (None, {}, {}, None)
    assert len(empty.trials()) == len(empty.curves()) == len(empty.baselines()) == 0
    assert empty.status["state"] == "running"


def test_several_objectives_have_a_pareto_front(tmp_path: Path) -> None:
    for count, objectives in enumerate(("[val/stft, val/style]", "[val/loss, val/stft, val/style]"), start=2):
        text = f"{SEARCH}sweep: {{objectives: {objectives}}}\n"
        outcomes: list[Outcome] = [([loss + 1, loss], "complete") for loss in (0.5, 1.0, 1.5, 2.0, 2.5)]
        sweep = load_sweep(made_sweep(tmp_path / str(count), outcomes, text=text))
        assert len(sweep.status["pareto"]) == 5  # style falls as the others rise
        assert "pareto" in sweep.figures and "history" in sweep.figures
        assert "curves" in sweep.figures  # read from the event files, since the study has none
        assert sweep.figures["curves"].layout.xaxis.title.text == "step"


def test_a_running_trial_is_read_from_shared_storage_on_a_disk(tmp_path: Path) -> None:
    folder = made_sweep(tmp_path / "outputs" / "toy", [([1.5], "complete"), ([1.25], "running")], "running")
    shared = tmp_path / "shared"
    (shared / "toy" / "trials").mkdir(parents=True)
    (folder / "trials" / "1").rename(shared / "toy" / "trials" / "1")
    data = read_yaml(folder / SETTINGS_FILE)
    data["sweep"]["shared"] = str(shared)
    write_yaml(folder / SETTINGS_FILE, data)
    sweep = load_sweep(folder)
    assert sweep.trial_folder(1) == shared / "toy" / "trials" / "1"
    assert sweep.trial_folder(0) == folder / "trials" / "0"
    assert set(sweep.curves(["val/loss"])["trial"]) == {0, 1}


def test_without_a_reachable_shared_storage_the_rest_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = made_sweep(tmp_path / "toy", [([1.5], "complete")])
    data = read_yaml(folder / SETTINGS_FILE)
    data["sweep"]["shared"] = "env:NUANCED_NOT_SET"
    write_yaml(folder / SETTINGS_FILE, data)
    assert len(load_sweep(folder).curves(["val/loss"])) == 1
    assert "NUANCED_NOT_SET" in caplog.text


def test_a_loaded_sweep_stays_as_it_was_read(tmp_path: Path) -> None:
    folder = made_sweep(tmp_path / "toy", [([1.5], "complete"), ([1.25], "running")], "running")
    study = open_study(folder, SweepSettings())
    sweep = LoadedSweep(folder, study, None, {})
    later = study.ask()
    later.set_user_attr("params", {})
    later.report(0.1, 1)
    study.tell(later, 0.1)
    assert sweep.best is not None and sweep.best.number == 0
    assert [trial.number for trial in sweep.leading] == [0, 1]
    assert "best trial (0)" in sweep.baselines().index
    assert sweep.figures
