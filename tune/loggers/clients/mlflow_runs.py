"""MLflow through its own client: a run per trial, found again by a tag.

A trial's process logs its run; the driver sets the run's state, since it alone knows that a trial was pruned or that
its process died.
"""

import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from nuanced_core.errors import ConfigError
from tune.config.secrets import masked, remember_secrets
from tune.loggers.clients.background import Reported, RunState, failure
from tune.loggers.clients.media import write_exhibits

__all__ = ["RUN_TAG", "STATE_TAG", "MlflowRun", "MlflowStates", "check_store", "create_store"]

logger = logging.getLogger(__name__)

RUN_TAG, STATE_TAG = "nuanced.run", "nuanced.state"
_URI = "MLFLOW_TRACKING_URI"
_STORE, _ARTIFACTS = "mlflow.db", "mlflow-artifacts"  # in the sweep's folder
# MLflow's limits of one request, and of a parameter's value in characters.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 6000
_STATUS: dict[RunState, str] = {
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_SEARCHES = 5  # for the run of a trial that has just ended: its process may still be connecting
_T = TypeVar("_T")


class MlflowRun:
    """A trial's run in MLflow, which is created, or continued if the trial was resumed.

    Args:
        uri: of the store where ``MLFLOW_TRACKING_URI`` is not set.
        experiment: name of the experiment, which is created if it does not exist.
        name, key: the run's name, and the value of its tag ``nuanced.run``.
        settings: its parameters.

    Raises:
        Exception: the store cannot be used, as for the methods.
    """

    def __init__(self, uri: str | None, experiment: str, name: str, key: str, settings: Mapping[str, Any]) -> None:
        self._client = _client(uri)
        experiment_id = _experiment(self._client, experiment)
        found = _find(self._client, experiment_id, key)
        # Per name the last step that an earlier process logged; a resumed trial repeats steps after its checkpoint.
        self._logged: dict[str, int] | None = None if found is None else {}
        if found is None:
            found = self._client.create_run(experiment_id, tags={RUN_TAG: key}, run_name=name)
        else:
            self._client.update_run(found.info.run_id, status="RUNNING")
        self._id = str(found.info.run_id)
        known = found.data.params
        params = [Param(n, str(v)[:_LONGEST_PARAM]) for n, v in settings.items() if n not in known]
        for chunk in _chunks(params, _MOST_PARAMS):
            self._client.log_batch(self._id, params=chunk)
        self._client.log_batch(self._id, tags=[RunTag(STATE_TAG, "running")])

    def log(self, batch: Sequence[Reported]) -> None:
        """Send an epoch: its metrics in as few requests as MLflow allows, its exhibits as artifacts."""
        metrics = [
            Metric(name, value, int(reported.time * 1000), reported.step)
            for reported in batch
            for name, value in reported.scalars.items()
            if reported.step > self._last_step(name)
        ]
        for chunk in _chunks(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=chunk, synchronous=True)
        for reported in batch:
            if reported.exhibits:
                with tempfile.TemporaryDirectory(prefix="nuanced-mlflow-") as folder:
                    write_exhibits(Path(folder), reported.exhibits)
                    self._client.log_artifacts(self._id, folder, f"step_{reported.step:08d}")

    def close(self, state: RunState) -> None:
        """Leave the state to the driver, which knows it better."""

    def _last_step(self, name: str) -> int:
        if self._logged is None:
            return -1
        if name not in self._logged:
            history = self._client.get_metric_history(self._id, name)
            self._logged[name] = max((metric.step for metric in history), default=-1)
        return self._logged[name]


class MlflowStates:
    """Sets the state of trials' runs when the driver knows how they ended, in a thread; a failure is warned of once.

    Args:
        uri, experiment: as ``MlflowRun`` has them.
        close_seconds: for which ``close`` waits.
    """

    def __init__(self, uri: str | None, experiment: str, close_seconds: float = 30.0) -> None:
        self._uri, self._experiment, self._close_seconds = uri, experiment, close_seconds
        self._has_warned = False
        self._ended: queue.SimpleQueue[tuple[str, RunState] | None] = queue.SimpleQueue()
        # A daemon: a server that does not answer must not keep the driver from ending.
        self._thread = threading.Thread(target=self._work, name="nuanced-mlflow-states", daemon=True)
        self._thread.start()

    def ended(self, key: str, state: RunState) -> None:
        """Set the state of the run with that ``key``."""
        self._ended.put((key, state))

    def close(self) -> None:
        """Wait for the states that are still to be set, but not for ever."""
        self._ended.put(None)
        self._thread.join(self._close_seconds)

    def _work(self) -> None:
        while (ended := self._ended.get()) is not None:
            self._set(*ended)

    def _set(self, key: str, state: RunState) -> None:
        try:
            client = _client(self._uri)
            experiment_id = _experiment(client, self._experiment)
            for attempt in range(_SEARCHES):
                run = _find(client, experiment_id, key)
                if run is not None:
                    client.log_batch(run.info.run_id, tags=[RunTag(STATE_TAG, state)])
                    client.set_terminated(run.info.run_id, status=_STATUS[state])
                    return
                time.sleep(0 if attempt == _SEARCHES - 1 else 1.0)
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning("mlflow: the state of trials that ended cannot be set: %s", failure(error))


def check_store(is_shared: bool) -> None:
    """Check that trials can reach MLflow's store.

    Raises:
        ConfigError: it would be a file in the sweep's folder, which their nodes do not see.
    """
    if is_shared and not os.environ.get(_URI):
        raise ConfigError(
            f"sweep.loggers: mlflow: with sweep.shared, trials do not reach a store in the sweep's folder; set {_URI} "
            "on all nodes to the address of an MLflow server"
        )


def create_store(folder: Path, experiment: str) -> str | None:
    """Create MLflow's store in the sweep's folder unless ``MLFLOW_TRACKING_URI`` is set; return its URI, or None.

    It is created before the first trial, since a new database is not made by several processes at a time. A failure
    is logged.
    """
    if os.environ.get(_URI):
        return None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = f"sqlite:///{folder.absolute() / _STORE}"
    try:
        client = MlflowClient(tracking_uri=uri)
        if client.get_experiment_by_name(experiment) is None:
            client.create_experiment(experiment, artifact_location=(folder.absolute() / _ARTIFACTS).as_uri())
    except Exception as error:
        logger.warning("mlflow: its store %s cannot be made: %s", folder / _STORE, failure(error))
    return uri


def _client(uri: str | None) -> MlflowClient:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    remember_secrets(os.environ.get(_URI, ""))
    chosen = os.environ.get(_URI) or uri
    if not chosen:
        raise ConfigError(f"{_URI} is not set on this node")
    try:
        return MlflowClient(tracking_uri=chosen)
    except MlflowException as error:
        raise ConfigError(f"{_URI}: {masked(chosen)}: {failure(error)}") from None


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another trial has just created it
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _find(client: MlflowClient, experiment_id: str, key: str) -> Any:
    found = client.search_runs([experiment_id], filter_string=f"tags.`{RUN_TAG}` = '{key}'", max_results=1)
    return found[0] if found else None


def _chunks(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
