"""tune.loggers.clients.mlflow_runs: runs in a real SQLite store, read back by MLflow's own client."""

from pathlib import Path
from typing import Any

import pytest

from nuanced_core.errors import ConfigError
from tests.tune import toy
from tune.loggers.clients.background import Reported

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

from mlflow.tracking import MlflowClient

from tune.loggers.clients.mlflow_runs import RUN_TAG, STATE_TAG, MlflowRun, MlflowStates, check_store, create_store

SETTINGS = {"train.learning_rate": 1e-3, "data.voices": ["af_heart", "am_adam"]}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with a new store: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow") / "toy"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert create_store(folder, "toy study") == uri_of(folder)
    return folder


@pytest.fixture
def store(empty: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return uri_of(empty)


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def epoch(*steps: int, value: float = 1.0, shows: bool = False) -> list[Reported]:
    reported = [Reported(step, 1000.0 + step, {"loss/total": value}) for step in steps]
    return [*reported, Reported(steps[-1], 1000.0 + steps[-1], {"val/loss": value}, toy.exhibits() if shows else ())]


def run_of(uri: str, key: str) -> Any:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy study")
    (found,) = client.search_runs([experiment.experiment_id], filter_string=f"tags.`{RUN_TAG}` = '{key}'")
    return client, found


@pytest.mark.slow
def test_a_run_has_its_settings_curves_sounds_pictures_and_state(store: str, empty: Path) -> None:
    run = MlflowRun(store, "toy study", "toy-0", "abc-0", SETTINGS)
    run.log(epoch(1, 2, 3, shows=True))
    run.close("complete")
    client, found = run_of(store, "abc-0")
    assert found.info.run_name == "toy-0" and found.info.status == "RUNNING"
    assert found.data.params == {"train.learning_rate": "0.001", "data.voices": "['af_heart', 'am_adam']"}
    assert found.data.tags[STATE_TAG] == "running"
    history = client.get_metric_history(found.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    files = {
        path.relative_to(empty / "mlflow-artifacts").as_posix().partition("/artifacts/")[2]
        for path in (empty / "mlflow-artifacts").rglob("*")
        if path.is_file()
    }
    assert files == {"step_00000003/listen/af_nova/spoken.wav", "step_00000003/look/af_nova/mel.png"}
    states = MlflowStates(store, "toy study")
    states.ended("abc-0", "pruned")
    states.close()
    _, found = run_of(store, "abc-0")
    assert (found.info.status, found.data.tags[STATE_TAG]) == ("KILLED", "pruned")


def test_a_resumed_trial_continues_its_run_as_one_curve(store: str) -> None:
    first = MlflowRun(store, "toy study", "toy-1", "abc-1", SETTINGS)
    first.log(epoch(1, 2, 3))
    states = MlflowStates(store, "toy study")
    states.ended("abc-1", "interrupted")
    states.close()
    again = MlflowRun(store, "toy study", "toy-1", "abc-1", SETTINGS)
    client, found = run_of(store, "abc-1")
    assert found.info.status == "RUNNING" and found.data.tags[STATE_TAG] == "running"
    again.log(epoch(2, 3, 4, value=2.0))  # from a checkpoint after step 1
    again.log(epoch(5))
    history = client.get_metric_history(found.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 1.0)]
    assert [m.step for m in client.get_metric_history(found.info.run_id, "val/loss")] == [3, 4, 5]


@pytest.mark.slow
def test_an_epoch_is_a_request_and_more_only_beyond_mlflow_s_limit(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MlflowRun(store, "toy study", "toy-2", "abc-2", SETTINGS)
    sizes: list[int] = []
    monkeypatch.setattr(run._client, "log_batch", lambda run_id, metrics, synchronous: sizes.append(len(metrics)))
    run.log(epoch(*range(500)))
    run.log(epoch(*range(500, 1700)))
    assert sizes == [501, 1000, 201]


def test_the_environment_names_the_store_before_the_sweep_s_folder(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(empty))
    assert create_store(tmp_path, "toy study") is None and not list(tmp_path.iterdir())
    MlflowRun(None, "toy study", "toy-3", "abc-3", SETTINGS)
    assert run_of(uri_of(empty), "abc-3")[1].info.run_name == "toy-3"
    check_store(is_shared=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match=r"mlflow: with sweep\.shared, .* set MLFLOW_TRACKING_URI on all nodes"):
        check_store(is_shared=True)


def test_a_server_that_is_gone_is_a_warning_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    states = MlflowStates(None, "toy study")
    for number in range(3):
        states.ended(f"abc-{number}", "complete")
    states.close()
    lines = [record.message for record in caplog.records if record.name.startswith("tune")]
    assert len(lines) == 1 and "the state of trials that ended cannot be set" in lines[0] and "s3cr3t" not in lines[0]
