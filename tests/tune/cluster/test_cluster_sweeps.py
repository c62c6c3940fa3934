"""Sweeps on a cluster of several nodes: Ray's own test cluster on this machine, with simulated GPUs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.cluster_utils import Cluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tune import toy
from tests.tune.conftest import MIXED
from tune.cluster.fingerprint import node_fingerprint
from tune.config.sweep_settings import SweepSettings
from tune.search.study import open_study

ROOT = Path(__file__).parents[3]


class Driver:
    """A toy sweep on a cluster, in a process of its own."""

    def __init__(self, cluster: Cluster, folder: Path, *overrides: str, resumed: bool = False) -> None:
        (folder / "toy.yaml").write_text(MIXED)
        settings = [*overrides, f"sweep.outputs={folder}"]
        config = f"load_sweep_config(Path({str(folder / 'toy.yaml')!r}), {settings!r})"
        new = f"run_sweep({config}, name='toy', services=services)"
        old = f"resume_sweep(Path({str(folder / 'toy')!r}), overrides={[*overrides]!r}, services=services)"
        script = f"""
import logging
import sys
from pathlib import Path
from nuanced_core.errors import NuancedError
from tests.tune import toy
from tune.cluster.machines import JoinedCluster
from tune.config.sweep_config import load_sweep_config
from tune.sweep.driver import resume_sweep, run_sweep
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
services = toy.services(machines=JoinedCluster({cluster.address!r}))
try:
    result = {old if resumed else new}
except NuancedError as error:
    sys.exit(f"refused: {{error}}")
print(*result.lines, sep="\\n")
sys.exit(result.exit_code)
"""
        self.output = folder / "output.txt"
        self._opened = self.output.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=self._opened,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < until, self.output.read_text()
            time.sleep(0.1)

    def end(self, seconds: float = 300) -> str:
        """Wait for the end of the process; return what it has printed."""
        try:
            self.process.wait(timeout=seconds)
        finally:
            self.kill()
        return self.output.read_text()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._opened.close()


def other_python(folder: Path) -> Path:
    """A folder that makes Python report another version where it is on the path.

    (Ray gives workers the driver's own import path, so another commit cannot be tested on one machine.)
    """
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import platform\nplatform.python_version = lambda: '3.9.1'\n")
    return site


def started(folder: Path) -> dict[int, dict[str, Any]]:
    """What trials wrote at their last start, by number."""
    return {int(file.parent.name): json.loads(file.read_text()) for file in folder.glob("*/start.json")}


def nodes_of(folder: Path) -> set[str]:
    return {facts["node"] for facts in started(folder).values()}


def test_two_simulated_gpus_on_two_nodes_run_8_trials_at_once_each_with_a_quarter(
    cluster: Cluster, tmp_path: Path
) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=4, num_gpus=1, memory=4 * 10**9)  # as much as 4 trials need
    together = f"search.encoder.width=[{toy.TOGETHER + 8}]"
    resources = ["sweep.gpus_per_trial=0.25", "sweep.memory_per_trial=1"]
    driver = Driver(cluster, tmp_path, together, "sweep.trials=8", "train.epochs=1", *resources)
    output = driver.end(seconds=400)
    assert "8 at a time on 3 nodes" in output
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 8}, output
    per_gpu = Counter((facts["node"], facts["gpus"]) for facts in started(tmp_path / "toy" / "trials").values())
    assert set(per_gpu.values()) == {4} and len(per_gpu) == 2


def test_trials_of_a_lost_node_continue_elsewhere_and_an_added_node_is_prepared_and_used(
    cluster: Cluster, tmp_path: Path
) -> None:
    first = [cluster.add_node(num_cpus=1) for _ in range(2)]
    # More trials than are needed: the sweep is stopped once the added node is in use and the moved trial is complete.
    driver = Driver(
        cluster, tmp_path, f"search.encoder.width=[{toy.SLOW}]", "sweep.trials=40", "train.epochs=3", "sweep.seed=1"
    )
    folder = tmp_path / "toy" / "trials"
    try:
        driver.wait_until(lambda: len(list(folder.glob("*/checkpoint.json"))) == 2)
        before = started(folder)
        assert {facts["node"] for facts in before.values()} == {node.node_id for node in first}
        cluster.remove_node(first[0], allow_graceful=False)
        added = cluster.add_node(num_cpus=1)
        (moved,) = [number for number, facts in before.items() if facts["node"] == first[0].node_id]
        driver.wait_until(lambda: json.loads((folder / str(moved) / "checkpoint.json").read_text())["epoch"] == 3)
        after = started(folder)[moved]["node"]
        driver.wait_until(lambda: added.node_id in nodes_of(folder))
        driver.process.send_signal(signal.SIGINT)
        output = driver.end()
    finally:
        driver.kill()
    assert driver.process.returncode == 130, output
    assert re.search(rf"trial {moved}: its process died; .* last checkpoint", output), output
    assert after != first[0].node_id
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    complete = {trial.number: trial for trial in trials if trial.state == TrialState.COMPLETE}
    assert moved in complete, output
    assert all(sorted(trial.intermediate_values) == [1, 2, 3] for trial in complete.values())
    assert TrialState.FAIL not in {trial.state for trial in trials}, output
    events = EventAccumulator(str(folder / str(moved))).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [10, 20, 30]
    prepared = (tmp_path / "cache" / "prepared").read_text().split()
    # Each node once, before its first trial; the head, on which none fits, never.
    assert Counter(prepared) == {node.node_id: 1 for node in (*first, added)}


def test_without_a_shared_disk_trials_are_copied_to_shared_storage(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2)
    shared = tmp_path / "shared"
    fixed = [
        f"sweep.shared=file://{shared}",
        f"search.encoder.width=[{toy.SLOW}, {toy.CRASH}, 64]",
        "sweep.trials=4",
        "train.epochs=2",
        "sweep.seed=3",
    ]
    driver = Driver(cluster, tmp_path, *fixed)
    try:
        driver.wait_until(lambda: any(shared.glob("toy/trials/*/checkpoint.json")))
    finally:
        driver.kill()
    output = Driver(cluster, tmp_path, resumed=True).end()
    shutil.rmtree(tmp_path / "toy" / "trials" / "0")  # as if the driver had been killed before it copied the folder
    assert "its budget is met" in Driver(cluster, tmp_path, resumed=True).end()
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    widths = Counter(trial.params["encoder.width"] for trial in trials)
    assert len(trials) == 4 and len(widths) > 1, output
    for trial in trials:
        folder = tmp_path / "toy" / "trials" / str(trial.number)
        names = {path.name for path in folder.iterdir()}
        assert names == {path.name for path in (shared / "toy" / "trials" / str(trial.number)).iterdir()}
        assert {"checkpoint.json", "config.yaml"} <= names and any(name.startswith("events.out") for name in names)
        if trial.params["encoder.width"] == toy.CRASH and trial.state == TrialState.FAIL:
            assert trial.user_attrs["error"].startswith("ValueError: two lines of a reason")
            assert "Traceback" in (folder / "error.txt").read_text()
            continue
        assert trial.state == TrialState.COMPLETE, output
        events = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("val/loss")] == [10, 20]


def test_the_measured_share_of_a_gpu_is_logged_used_and_saved(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=4, num_gpus=1)
    together = f"search.encoder.width=[{toy.TOGETHER + 3}]"
    auto = ["sweep.gpus_per_trial=auto", "sweep.trials=3", "train.epochs=1"]
    output = Driver(cluster, tmp_path, together, *auto).end()
    # 4.8 of 24 GB with headroom is 0.26 of the card: a third.
    assert re.search(r"a step of the largest trial takes 4\.2 of 24\.0 GB: .*\b0\.333 of a GPU", output), output
    assert "3 trials, 3 at a time" in output and "best trial" in output
    assert "gpus_per_trial: 0.333" in (tmp_path / "toy" / "sweep.yaml").read_text()


def test_a_node_that_differs_from_the_driver_is_refused_before_anything_is_prepared(
    cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(other_python(tmp_path)), str(ROOT)]))
        cluster.add_node(num_cpus=1)
    driver = Driver(cluster, tmp_path, "sweep.trials=1")
    output = driver.end()
    problem = f"has Python 3.9.1, the driver {node_fingerprint().python}; install the same there"
    assert "refused: node " in output and problem in output
    assert driver.process.returncode == 1
    assert not (tmp_path / "toy").exists() and not (tmp_path / "cache" / "prepared").exists()


def test_the_doctor_examines_every_node(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(other_python(tmp_path)), str(ROOT)]))
        cluster.add_node(num_cpus=4, memory=64 * 10**9)
    script = f"import sys; from tune.cli.app import main; sys.exit(main(['doctor', '--address', {cluster.address!r}]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    fit = "4 trials fit at a time (CPU cores: 4 for trials of 1)"
    assert lines[0].split(maxsplit=1) == ["cluster", f"2 nodes, 4 CPU cores, 0 GPUs: {fit}"]
    assert sum(line.startswith("node ") and "4 CPU cores, 0 GPUs, 64.0 GB for trials" in line for line in lines) == 1
    assert sum(" kokoro files" in line and "not fetched yet" in line for line in lines) == 2
    assert sum("has Python 3.9.1" in line and line.startswith("problem: node ") for line in lines) == 1
    assert lines[-1] == "a sweep could not run"
    assert not list((tmp_path / "outputs").iterdir())
