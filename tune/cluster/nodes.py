"""Function calls on the nodes of a cluster."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nuanced_core.errors import ConfigError, NuancedError, one_line
from tune.cluster.machines import Resources
from tune.cluster.ray_runtime import ClusterError

__all__ = ["ANSWER_SECONDS", "LostNodeError", "on_nodes"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
# For a short call on a node, whose first worker process reads all packages from its disk. Ray would wait without an end
# for a node whose worker processes do not start.
ANSWER_SECONDS = 300.0
_PROGRESS_SECONDS = 30.0  # without an answer, until the nodes that are still at work are logged


class LostNodeError(ClusterError):
    """A node does not answer any more."""


def on_nodes(
    machines: Sequence[Resources],
    call: Callable[..., T],
    *arguments: Any,
    gpus: float = 0.0,
    log_progress: bool = False,
    timeout: float = math.inf,
) -> dict[Resources, T | NuancedError]:
    """Call a function on all nodes at the same time; return its result, or its error, by node.

    Args:
        call: function that Ray can pickle.
        gpus: GPUs that each call needs.
        log_progress: whether to log which nodes have answered and, every 30 s without an answer, which have not.
        timeout: seconds after which a node that has not answered gets a ClusterError as its result.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Each call has a process of its own, so that the GPU memory that it held is freed.
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_calls=1, max_retries=0)(call)
    waiting = {}
    for machine in machines:
        strategy = "DEFAULT" if machine.node is None else NodeAffinitySchedulingStrategy(machine.node, soft=False)
        waiting[task.options(scheduling_strategy=strategy).remote(*arguments)] = machine
    found: dict[Resources, T | NuancedError] = {}
    until = time.monotonic() + timeout
    while waiting:
        left = until - time.monotonic()
        if left <= 0:
            late = ClusterError(f"no worker process answers within {timeout:.0f} s; see Ray's logs on that node")
            return {**found, **dict.fromkeys(waiting.values(), late)}
        answered, _ = ray.wait(list(waiting), timeout=min(_PROGRESS_SECONDS, left))
        for answer in answered:
            machine = waiting.pop(answer)
            found[machine] = _result(answer)
            if log_progress and not isinstance(found[machine], NuancedError):
                logger.info("%s: ready", machine.name)
        if log_progress and not answered:
            need = f", which needs {gpus:g} of a GPU" if gpus else ""
            logger.info("still at work%s: %s", need, ", ".join(machine.name for machine in waiting.values()))
    return found


def _result(answer: Any) -> Any:
    import ray

    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        reason = " ".join(str(error).strip().splitlines()[-1].split())[:300]
        if isinstance(error.cause, NuancedError):
            return error.cause
        if "ModuleNotFoundError" in str(error):
            return ConfigError(f"a package is not installed there ({reason}); run 'make setup' on it")
        return ClusterError(reason)
    except ray.exceptions.RayError as error:
        return LostNodeError(f"does not answer: {one_line(error)}")
