"""Sweeps on a cluster of several nodes: Ray's own test cluster on this machine, with pretended GPUs."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.trial import TrialState
from ray.cluster_utils import Cluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nuanced_core.errors import ConfigError, WeightsError
from tests.tune import toy
from tests.tune.conftest import MIXED
from tune.cluster import node_preparation as nodes
from tune.cluster.authentication import check_cluster
from tune.cluster.fingerprint import fingerprint_difference, node_fingerprint
from tune.cluster.node_preparation import UnfitNodeError, prepare_late_node, storage_probe
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_settings import SweepSettings
from tune.search.study import open_study

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cluster(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head on which no trial fits; tests add nodes to it."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


class Driver:
    """A toy sweep on a cluster, in a process of its own."""

    def __init__(self, cluster: Cluster, folder: Path, *overrides: str, resumed: bool = False, **services: str) -> None:
        (folder / "toy.yaml").write_text(MIXED)
        settings = [*overrides, f"sweep.outputs={folder}"]
        call = (
            f"resume_sweep(Path({str(folder / 'toy')!r}), overrides={[*overrides]!r}, services=services)"
            if resumed
            else f"run_sweep(load_sweep(Path({str(folder / 'toy.yaml')!r}), {settings!r}), name='toy', services=services)"
        )
        others = "".join(f", {name}={value}" for name, value in services.items())
        script = f"""
import sys
from pathlib import Path
from nuanced_core.errors import NuancedError
from tests.tune import toy
from tune.cluster.machines import JoinedCluster
from tune.config.sweep_config import load_sweep
from tune.sweep.driver import resume_sweep, run_sweep
services = toy.services(lambda line: print(line, flush=True), machines=JoinedCluster({cluster.address!r}){others})
try:
    sys.exit({call}.exit_code)
except NuancedError as error:
    sys.exit(f"refused: {{error}}")
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._output = (folder / "said.txt").open("wb")
        self.said = folder / "said.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until(self, condition: Any, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < until, self.said.read_text()
            time.sleep(0.1)

    def end(self, seconds: float = 300) -> str:
        """What it said, once it has ended."""
        try:
            self.process.wait(timeout=seconds)
        finally:
            self.kill()
        return self.said.read_text()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self._output.close()


def unlike(folder: Path) -> Path:
    """What makes Python another one where it is on its path. (Ray gives workers the driver's own import path, so
    another commit cannot be had on one machine.)
    """
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import platform\nplatform.python_version = lambda: '3.9.1'\n")
    return site


def started(folder: Path) -> dict[int, dict[str, Any]]:
    """What trials noted at their start, by number."""
    return {int(file.parent.name): json.loads(file.read_text()) for file in folder.glob("*/start.json")}


def test_eight_pretended_gpus_on_two_nodes_run_32_trials_at_once_each_with_a_quarter(
    cluster: Cluster, tmp_path: Path
) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=16, num_gpus=4)
    together = f"search.encoder.width=[{toy.TOGETHER + 32}]"
    driver = Driver(cluster, tmp_path, together, "sweep.trials=32", "train.epochs=1", "sweep.gpus_per_trial=0.25")
    said = driver.end(seconds=400)
    assert "32 at a time on 3 nodes" in said
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 32}, said
    places = Counter((fact["node"], fact["gpus"]) for fact in started(tmp_path / "toy" / "trials").values())
    assert set(places.values()) == {4} and len(places) == 8


def test_the_trials_of_a_node_that_is_gone_move_and_a_new_node_is_prepared_and_used(
    cluster: Cluster, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    slow = [f"search.encoder.width=[{toy.SLOW}]", "sweep.trials=4", "train.epochs=3", "sweep.seed=1"]
    driver = Driver(cluster, tmp_path, *slow)
    folder = tmp_path / "toy" / "trials"
    try:
        driver.wait_until(lambda: len(list(folder.glob("*/checkpoint.json"))) == 2)
        before = started(folder)
        assert {fact["node"] for fact in before.values()} == {node.node_id for node in nodes}
        cluster.remove_node(nodes[0], allow_graceful=False)
        prepare_late_node = cluster.add_node(num_cpus=1)
        said = driver.end()
    finally:
        driver.kill()
    (moved,) = [number for number, fact in before.items() if fact["node"] == nodes[0].node_id]
    assert f"trial {moved}: its process died; it goes on from its last checkpoint" in said
    after = started(folder)
    assert after[moved]["node"] != nodes[0].node_id
    assert prepare_late_node.node_id in {fact["node"] for fact in after.values()}
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    assert [(trial.state, sorted(trial.intermediate_values)) for trial in trials] == [
        (TrialState.COMPLETE, [1, 2, 3])
    ] * 4
    events = EventAccumulator(str(folder / str(moved))).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [10, 20, 30]
    prepared = (tmp_path / "cache" / "prepared").read_text().split()
    # Each node once, before its first trial; the head, on which none fits, never.
    assert Counter(prepared) == {node.node_id: 1 for node in (*nodes, prepare_late_node)}


def test_without_a_shared_disk_trials_are_copied_to_storage_that_all_reach(cluster: Cluster, tmp_path: Path) -> None:
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
    refused = Driver(cluster, tmp_path, *fixed)
    assert "toy: exists already" in refused.end()
    said = Driver(cluster, tmp_path, resumed=True).end()
    shutil.rmtree(tmp_path / "toy" / "trials" / "0")  # as if the driver had been killed before it had copied it
    assert "its budget is met" in Driver(cluster, tmp_path, resumed=True).end()
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    widths = Counter(trial.params["encoder.width"] for trial in trials)
    assert len(trials) == 4 and len(widths) > 1, said
    for trial in trials:
        folder = tmp_path / "toy" / "trials" / str(trial.number)
        names = {path.name for path in folder.iterdir()}
        assert names == {path.name for path in (shared / "toy" / "trials" / str(trial.number)).iterdir()}
        assert {"checkpoint.json", "config.yaml"} <= names and any(name.startswith("events.out") for name in names)
        if trial.params["encoder.width"] == toy.CRASH and trial.state == TrialState.FAIL:
            assert trial.user_attrs["error"].startswith("ValueError: two lines of a reason")
            assert "Traceback" in (folder / "error.txt").read_text()
            continue
        assert trial.state == TrialState.COMPLETE, said
        events = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("val/loss")] == [10, 20]


def test_a_share_of_a_gpu_is_measured_said_and_kept(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=4, num_gpus=1)
    together = f"search.encoder.width=[{toy.TOGETHER + 3}]"
    auto = ["sweep.gpus_per_trial=auto", "sweep.trials=3", "train.epochs=1"]
    said = Driver(cluster, tmp_path, together, *auto, measure="toy.measure").end()
    # 4.8 of 24 GB with headroom is 0.26 of the card: a third.
    assert "a step of the largest trial takes 4.2 of 24.0 GB: 0.333 of a GPU for each trial" in said
    assert "3 trials, 3 at a time" in said and "best trial" in said
    assert "gpus_per_trial: 0.333" in (tmp_path / "toy" / "sweep.yaml").read_text()


def test_a_node_that_is_unlike_the_driver_is_refused_before_anything_is_prepared(
    cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(unlike(tmp_path)), str(ROOT)]))
        cluster.add_node(num_cpus=1)
    driver = Driver(cluster, tmp_path, "sweep.trials=1")
    said = driver.end()
    assert (
        "refused: node " in said
        and f"has Python 3.9.1, the driver {node_fingerprint().python}; install the same there" in said
    )
    assert driver.process.returncode == 1
    assert not (tmp_path / "toy").exists() and not (tmp_path / "cache" / "prepared").exists()


def test_the_doctor_looks_at_every_node(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(unlike(tmp_path)), str(ROOT)]))
        cluster.add_node(num_cpus=4)
    script = f"import sys; from tune.cli.app import main; sys.exit(main(['doctor', '--address', {cluster.address!r}]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["cluster", "2 nodes, 4 CPU cores, 0 GPUs: 4 trials fit at a time"]
    assert sum(" kokoro files" in line and "not fetched yet" in line for line in lines) == 2
    assert sum("has Python 3.9.1" in line and line.startswith("problem: node ") for line in lines) == 1
    assert lines[-1] == "a sweep could not run"
    assert not list((tmp_path / "outputs").iterdir())


def test_other_code_other_versions_and_a_folder_that_is_not_seen_are_told_apart() -> None:
    ours = node_fingerprint()
    assert fingerprint_difference(ours, ours) is None
    code = replace(ours, code="0" * 12)
    assert "has other code (000000000000, the driver" in str(fingerprint_difference(ours, code))
    old = replace(ours, versions={**ours.versions, "torch": "1.0"})
    assert "has torch 1.0, the driver" in str(fingerprint_difference(ours, old))
    there, here = replace(ours, models={"a": "1" * 64, "b": "2" * 64}), replace(ours, models={"a": "3" * 64})
    assert "has another a (SHA-256 333333333333, the driver 111111111111)" in str(fingerprint_difference(there, here))
    assert fingerprint_difference(there, replace(ours, models={})) is None  # it will fetch them


def test_a_place_is_seen_if_what_is_written_there_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage_probe(SharedFolder(str(tmp_path / "a"))) as meeting:
        assert meeting.problem() is None
        elsewhere = replace(meeting, place=SharedFolder(str(tmp_path / "b")))
        assert f"does not see {tmp_path / 'b'}: put --outputs on a disk that all nodes share" in str(
            elsewhere.problem()
        )
        assert not (tmp_path / "b").exists()

        def refused(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(meeting.place._files, "write_text", refused)
        assert "cannot be written: PermissionError" in str(meeting.problem())
    assert not list((tmp_path / "a").iterdir())


def test_a_node_that_joins_later_is_prepared_once_or_gives_its_trial_back(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path))
    prepared: list[object] = []

    def prepare(runs: object, say: object) -> list[toy.ToyPrepared]:
        prepared.append(runs)
        return [toy.ToyPrepared()]

    here = ray.get_runtime_context().get_node_id()
    prepare_late_node(frozenset([here]), node_fingerprint(), prepare, [])
    assert not prepared
    with pytest.raises(UnfitNodeError, match=r"node .*: has other code"):
        prepare_late_node(frozenset(), replace(node_fingerprint(), code="0" * 12), prepare, [])

    def broken(runs: object, say: object) -> list[toy.ToyPrepared]:
        raise WeightsError("voices: cannot be fetched")

    with pytest.raises(UnfitNodeError, match=r"node .*: voices: cannot be fetched"):
        prepare_late_node(frozenset(), node_fingerprint(), broken, [])
    for _ in range(2):
        prepare_late_node(frozenset(), node_fingerprint(), prepare, [])
    assert len(prepared) == 1
    nodes._prepared.clear()


def test_who_has_not_the_cluster_s_token_does_not_join(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_cluster(cluster.address, insecure=False)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    wrong = tmp_path / "auth_token"
    wrong.write_text("0" * 64)
    wrong.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    with pytest.raises(ConfigError, match=r"others can read the token \(mode 644\); run: chmod 600"):
        check_cluster(cluster.address, insecure=False)
    wrong.chmod(0o600)
    with pytest.raises(ConfigError, match=f"the token in {wrong} is not this cluster's"):
        check_cluster(cluster.address, insecure=False)
    wrong.write_text(token.read_text())
    check_cluster(cluster.address, insecure=False)
    with pytest.raises(ConfigError, match="no Ray answers there"):
        check_cluster("127.0.0.1:1", insecure=False)


def test_a_cluster_that_lets_anybody_in_is_refused_unless_that_is_wanted(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import sys
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
print(made.address, flush=True)
sys.stdin.read()
made.shutdown()
"""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    head = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert head.stdout is not None
        address = next(line for line in head.stdout if ":" in line and " " not in line.strip()).strip()
        with pytest.raises(ConfigError, match=r"lets anybody in who reaches it, to run anything; .* give --insecure"):
            check_cluster(address, insecure=False)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        check_cluster(address, insecure=True)
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    finally:
        head.communicate()
