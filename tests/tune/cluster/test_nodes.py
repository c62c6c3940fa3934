"""tune.cluster.nodes: calls on nodes, their errors, and what is logged."""

import logging
import time

import pytest

from nuanced_core.errors import ConfigError, WeightsError
from tune.cluster.machines import Resources
from tune.cluster.nodes import on_nodes
from tune.cluster.ray_runtime import ClusterError

MACHINES = [Resources(1, 0, "one"), Resources(1, 0, "two")]


def double(value: object) -> object:
    if value == "project's error":
        raise WeightsError("voices: cannot be fetched")
    if value == "missing package":
        raise ModuleNotFoundError("No module named 'kokoro'")
    if value == "other error":
        raise ValueError("two lines\nof a reason")
    return [value] * 2


def test_each_node_returns_its_result_and_progress_is_logged_only_on_request(
    ray_session: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tune.cluster.nodes"):
        assert on_nodes(MACHINES, double, 1) == {machine: [1, 1] for machine in MACHINES}
        assert not caplog.messages
        on_nodes(MACHINES, double, 1, log_progress=True)
        assert sorted(caplog.messages) == ["one: ready", "two: ready"]


def dawdle(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_a_node_that_does_not_answer_in_time_is_reported(ray_session: None) -> None:
    assert on_nodes(MACHINES[:1], dawdle, 0.1, timeout=60) == {MACHINES[0]: 0.1}
    (error,) = on_nodes(MACHINES[:1], dawdle, 10, timeout=1).values()
    assert isinstance(error, ClusterError)
    assert str(error) == "no worker process answers within 1 s; see Ray's logs on that node"


def test_an_error_on_a_node_is_returned_as_an_error_of_the_project(
    ray_session: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tune.cluster.nodes"):
        for value, kind, text in (
            ("project's error", WeightsError, "voices: cannot be fetched"),
            ("missing package", ConfigError, "a package is not installed there (.*kokoro.*); run 'make setup' on it"),
            ("other error", ClusterError, "of a reason"),
        ):
            (error,) = on_nodes(MACHINES[:1], double, value, log_progress=True).values()
            with pytest.raises(kind, match=text.replace("(", r"\(").replace(")", r"\)")):
                raise error  # type: ignore[misc]
    assert not caplog.messages  # no node is ready
