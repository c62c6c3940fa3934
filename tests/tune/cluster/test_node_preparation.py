"""tune.cluster.node_preparation: the probe of shared storage, and nodes that join late."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, WeightsError
from tests.tune import toy
from tune.cluster import node_preparation
from tune.cluster.fingerprint import node_fingerprint
from tune.cluster.machines import Resources
from tune.cluster.node_preparation import UnfitNodeError, prepare_late_node, prepare_machines, storage_probe
from tune.cluster.nodes import LostNodeError
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import parse_sweep


def test_the_probe_finds_a_folder_that_the_node_does_not_see_or_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage_probe(SharedFolder(str(tmp_path / "a"))) as probe:
        assert probe.problem() is None
        elsewhere = replace(probe, folder=SharedFolder(str(tmp_path / "b")))
        assert f"does not see {tmp_path / 'b'}: put --outputs on a disk that all nodes share" in str(
            elsewhere.problem()
        )
        assert not (tmp_path / "b").exists()

        def refused(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(probe.folder._files, "pipe_file", refused)
        assert "cannot be written: PermissionError" in str(probe.problem())
    assert not list((tmp_path / "a").iterdir())


def test_a_late_node_is_prepared_once_or_is_unfit(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path))
    monkeypatch.setattr(node_preparation, "_prepared", set())
    calls: list[object] = []

    def prepare(runs: Sequence[RunConfig]) -> list[toy.ToyPrepared]:
        calls.append(runs)
        return [toy.ToyPrepared()]

    this_node = ray.get_runtime_context().get_node_id()
    prepare_late_node(frozenset([this_node]), node_fingerprint(), prepare, [])
    assert not calls
    with pytest.raises(UnfitNodeError, match=r"node .*: has other code"):
        prepare_late_node(frozenset(), replace(node_fingerprint(), code="0" * 12), prepare, [])

    def broken(runs: Sequence[RunConfig]) -> list[toy.ToyPrepared]:
        raise WeightsError("voices: cannot be fetched")

    with pytest.raises(UnfitNodeError, match=r"node .*: voices: cannot be fetched"):
        prepare_late_node(frozenset(), node_fingerprint(), broken, [])
    for _ in range(2):
        prepare_late_node(frozenset(), node_fingerprint(), prepare, [])
    assert len(calls) == 1


NODES = [Resources(1, 0, f"node {name}", name) for name in "ab"]


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([{"m": "1" * 64}, {"m": "1" * 64, "n": "2" * 64}], {"m": "1" * 64, "n": "2" * 64}),
        ([{"m": "1" * 64}, LostNodeError("does not answer")], {"m": "1" * 64}),
        ([{"m": "1" * 64}, {"m": "2" * 64}], "node b: m: SHA-256 222222222222, but 111111111111 on node a"),
        ([{"m": "1" * 64}, ConfigError("no such voice")], "node b: no such voice"),
    ],
)
def test_the_results_of_all_nodes_are_merged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[object], outcome: object
) -> None:
    """Nodes that are lost meanwhile are left out; an error, or another model file, of one node stops the sweep."""
    monkeypatch.setattr(node_preparation, "check_nodes", lambda machines, probe: {})
    monkeypatch.setattr(node_preparation, "on_nodes", lambda machines, *_, **__: dict(zip(NODES, answers, strict=True)))
    config = parse_sweep({"search": {"encoder.width": [64]}, "sweep": {"trials": 1}}, "a.yaml")
    if isinstance(outcome, dict):
        prepared = prepare_machines(NODES, config, toy.prepare, SharedFolder(str(tmp_path)))
        assert prepared.models == outcome
    else:
        with pytest.raises(ConfigError, match=str(outcome)):
            prepare_machines(NODES, config, toy.prepare, SharedFolder(str(tmp_path)))
