"""tune.loggers.run_loggers and sweep_loggers: the loggers that a sweep's settings name, in sweeps of the toy."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nuanced_core.errors import ConfigError
from tests.tune import toy
from tests.tune.conftest import sweep
from tune.config.sweep_config import parse_sweep
from tune.config.sweep_settings import SweepSettings
from tune.loggers.run_loggers import LoggerPlan, TrialLoggers, check_loggers, flat_settings
from tune.sweep.driver import run_sweep

SWEPT = f"""
train: {{epochs: 4}}
search:
  train.learning_rate: {{low: 1.0e-5, high: 1.0e-1, log: true}}
  encoder.width: [{toy.SHOWS}, {toy.TRAINING_ERROR}]
sweep:
  {{trials: 4, sampler: random, seed: 3, pruner: patience, patience: 1, max_concurrent: 1, memory_per_trial: null,
    enqueue: [
      {{train.learning_rate: 1.0e-3, encoder.width: {toy.SHOWS}}},
      {{train.learning_rate: 2.0e-3, encoder.width: {toy.TRAINING_ERROR}}}]}}
"""


@pytest.fixture(autouse=True)
def no_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(("extra", "module"), [("mlflow", "mlflow.tracking"), ("wandb", "wandb")])
def test_a_missing_package_is_told_before_a_sweep_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    data: dict[str, Any] = {"sweep": {"loggers": ["tensorboard", extra], "outputs": str(tmp_path)}}
    data["search"] = {"train.learning_rate": [1e-3, 1e-2]}
    with pytest.raises(ConfigError, match=rf"loggers: {extra}: .*pip install 'nuanced-speech\[{extra}\]'"):
        run_sweep(parse_sweep(data, "a.yaml"), name="toy", services=toy.services())
    assert not list(tmp_path.iterdir())
    check_loggers(["tensorboard"])


def test_loggers_are_named_once_and_by_their_names() -> None:
    assert SweepSettings().loggers == ("tensorboard",)
    for wrong, problem in ((["wandb", "wandb"], "listed twice"), (["neptune"], "sweep.loggers")):
        with pytest.raises(ConfigError, match=problem):
            parse_sweep({"sweep": {"loggers": wrong}, "search": {"train.learning_rate": [1e-3, 1e-2]}}, "a.yaml")


def test_tensorboard_can_be_left_out(ray_session: None, tmp_path: Path) -> None:
    result, lines = sweep(SWEPT, tmp_path, "sweep.loggers=[]", "sweep.trials=2")
    assert [trial["state"] for trial in result.status["trials"]] == ["complete", "failed"]
    assert not list(result.folder.rglob("*tfevents*")) and not any("TensorBoard" in line for line in lines)


def test_a_logger_that_fails_is_told_once_and_stops_no_trial(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setattr("tests.tune.toy.start_run", start_without_wandb)
    result, lines = sweep(SWEPT, tmp_path, "sweep.loggers=[tensorboard, wandb]")
    assert [trial["state"] for trial in result.status["trials"]].count("failed") < 4
    told = [line for line in lines if line.startswith("wandb: ") and "incomplete" in line]
    assert len(told) == 1 and "the trials go on" in told[0]
    assert EventAccumulator(str(result.folder / "trials" / "0")).Reload().Scalars("val/loss")


def start_without_wandb(*arguments: Any) -> Any:
    """Start a toy run in a process in which W&B cannot begin a run."""
    import wandb

    def refused(**settings: Any) -> Any:
        raise wandb.Error("no space left on device")

    wandb.init = refused
    return toy.ToyRun(*arguments)


def test_a_sweep_is_logged_to_mlflow_and_wandb(ray_session: None, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from mlflow.tracking import MlflowClient

    result, lines = sweep(SWEPT, tmp_path, "sweep.loggers=[wandb, mlflow]")
    assert sum("wandb: no login" in line for line in lines) == 1
    assert not any("incomplete" in line for line in lines), lines
    states = {trial["number"]: trial["state"] for trial in result.status["trials"]}
    assert {"complete", "failed"} <= set(states.values())
    client = MlflowClient(tracking_uri=f"sqlite:///{result.folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    found = {int(run.info.run_name.removeprefix("toy-")): run for run in runs}
    assert {number: run.data.tags["nuanced.state"] for number, run in found.items()} == states
    status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    assert {number: run.info.status for number, run in found.items()} == {n: status[s] for n, s in states.items()}
    assert found[0].data.params["encoder.width"] == str(toy.SHOWS)
    curve = client.get_metric_history(found[0].info.run_id, "val/loss")
    assert [metric.step for metric in curve] == [10, 20, 30, 40]
    artifacts = [path.name for path in (result.folder / "mlflow-artifacts").rglob("*.wav")]
    assert artifacts.count("spoken.wav") >= 4
    offline = {int(path.parents[1].name) for path in result.folder.glob("trials/*/wandb/offline-run-*")}
    assert offline == set(states) and not list(result.folder.rglob("*tfevents*"))


def test_settings_are_flat_and_a_run_s_id_is_of_its_study(tmp_path: Path) -> None:
    assert flat_settings({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": None}) == {
        "a.b.c": 1,
        "a.d": [1, {"e": 2}],
        "f": None,
    }
    plan = LoggerPlan(("tensorboard",), "study", "toy", "0a1b")
    assert (plan.run_name(3), plan.run_id(3)) == ("toy-3", "0a1b-3")
    loggers = TrialLoggers(plan, 3, tmp_path, {})
    loggers(1, {"val/loss": 1.0}, toy.exhibits())
    loggers.flush()
    loggers.close("complete")
    assert loggers.warnings == []
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"] == ["listen/af_nova/spoken"]
