"""TODO."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nuanced_core.errors import ConfigError, NuancedError
from tune.cluster.machines import Resources
from tune.cluster.ray_runtime import ClusterError

__all__ = ["on_nodes"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
_PATIENCE = 30.0  # seconds that nodes work in silence


class LostNodeError(ClusterError):
    """A node does not answer any more."""


def on_nodes(
    machines: Sequence[Resources],
    call: Callable[..., T],
    *arguments: Any,
    gpus: float = 0.0,
) -> dict[Resources, T | NuancedError]:
    """What ``call`` returns on each node, or what went wrong there; all at the same time.

    ``say`` is told which nodes have answered, and now and then which have not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A process for this call alone: what it held of a GPU goes with it.
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_calls=1, max_retries=0)(call)
    waiting = {}
    for machine in machines:
        here = "DEFAULT" if machine.node is None else NodeAffinitySchedulingStrategy(machine.node, soft=False)
        waiting[task.options(scheduling_strategy=here).remote(*arguments)] = machine
    found: dict[Resources, T | NuancedError] = {}
    while waiting:
        answered, _ = ray.wait(list(waiting), timeout=_PATIENCE)
        for answer in answered:
            machine = waiting.pop(answer)
            found[machine] = _answer(answer)
            if not isinstance(found[machine], NuancedError):
                logger.info("%s: ready", machine.name)
        if not answered:
            busy = f", which needs {gpus:g} of a GPU" if gpus else ""
            logger.info("still at work%s: %s", busy, ", ".join(machine.name for machine in waiting.values()))
    return found


def _answer(answer: Any) -> Any:
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
        return LostNodeError(f"does not answer: {' '.join(str(error).split())[:200]}")
