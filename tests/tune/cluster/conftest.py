"""Ray's test cluster of several nodes on this machine, with simulated GPUs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster


@pytest.fixture
def cluster(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head on which no trial fits; tests add nodes to it."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()
