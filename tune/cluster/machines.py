"""The machines that trials run on: this one, with a Ray of its own, or the nodes of a Ray cluster that is joined."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from nuanced_core.errors import ConfigError
from tune.cluster.authentication import check_cluster, use_token
from tune.cluster.ray_runtime import RAY_ENVIRONMENT, connected
from tune.config.sweep_settings import SweepSettings

__all__ = [
    "JoinedCluster",
    "Machines",
    "Resources",
    "ThisMachine",
    "check_fit",
    "concurrent_trials",
    "is_cluster",
    "local_resources",
]
# Of these a joined cluster's processes are told: what they were started with is another user's, or another day's.
_TOLD = ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "NUANCED_CACHE", "NUANCED_CACHE_LIMIT")
# Little goes through Ray's object store: one function and small dicts. Bytes.
_OBJECT_STORE = 128 * 2**20
_COUNT_EVERY = 5.0  # seconds between two looks at a cluster's nodes


@dataclass(frozen=True)
class Resources:
    """What trials can use of one machine: CPU cores and GPUs."""

    cpus: int
    gpus: int
    name: str = "this machine"
    node: str | None = None  # Ray's id of it, on a joined cluster

    def fitting(self, settings: SweepSettings) -> int:
        """How many trials have room at one time."""
        fit = int(self.cpus // settings.cpus_per_trial)
        per_gpu = settings.gpus
        if 0 < per_gpu <= 1:
            fit = min(fit, self.gpus * int(1 / per_gpu + 1e-6))
        elif per_gpu:
            fit = min(fit, int(self.gpus // per_gpu))
        return fit


class Machines(Protocol):
    """Where a sweep runs."""

    @property
    def options(self) -> str:
        """What the command needs to run there again, behind a space."""

    def joined(self) -> AbstractContextManager[None]:
        """What has to be up before the machines can be asked what they have."""

    def started(self) -> AbstractContextManager[None]:
        """Ray is up, for as long as the context lasts."""

    def resources(self) -> list[Resources]:
        """What each machine has, now."""


class ThisMachine:
    """A Ray of this process's own, which ends with it."""

    options = ""

    def joined(self) -> AbstractContextManager[None]:
        """Nothing: a machine can be looked at without Ray, and what is wrong is told sooner."""
        return nullcontext()

    @contextmanager
    def started(self) -> Iterator[None]:
        """Ray on this machine, or the one that runs in this process already.

        Raises:
            ClusterError: Ray does not start.
            ConfigError: others can read the token.
        """
        use_token(create=True)
        (machine,) = self.resources()
        with connected(
            address="local",
            num_cpus=machine.cpus,
            num_gpus=machine.gpus,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
        ):
            yield

    def resources(self) -> list[Resources]:
        """What this machine has."""
        return [local_resources()]


@dataclass
class JoinedCluster:
    """A cluster that others started, on a node of which this process runs.

    Args:
        address: of its head, ``HOST:PORT``, or ``auto``: that of the Ray which this machine belongs to.
        insecure: whether one that lets anybody in may be joined.
    """

    address: str
    insecure: bool = False
    _counted: float = field(default=-math.inf, init=False)
    _nodes: list[Resources] = field(default_factory=list, init=False)

    @property
    def options(self) -> str:
        """The options that name it."""
        return f" --address {self.address}{' --insecure' if self.insecure else ''}"

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Connected to the cluster, for as long as the context lasts.

        Raises:
            ConfigError: nobody answers at the address, the cluster lets anybody in, or it does not take our token.
            ClusterError: this process cannot take part in it.
        """
        address = _resolved(self.address)
        check_cluster(address, insecure=self.insecure)
        told = {name: os.environ.get(name, RAY_ENVIRONMENT.get(name)) for name in _TOLD}
        variables = {name: value for name, value in told.items() if value is not None}
        with connected(address=address, runtime_env={"env_vars": variables}):
            yield

    def started(self) -> AbstractContextManager[None]:
        """Nothing: it is up."""
        return nullcontext()

    def resources(self) -> list[Resources]:
        """CPU cores and GPUs of each node that is alive; looked at anew every few seconds."""
        import ray

        if time.monotonic() - self._counted > _COUNT_EVERY:
            self._nodes = [
                Resources(
                    int(node["Resources"].get("CPU", 0)),
                    int(node["Resources"].get("GPU", 0)),
                    f"node {node['NodeManagerAddress']}",
                    node["NodeID"],
                )
                for node in ray.nodes()
                if node["Alive"]
            ]
            self._counted = time.monotonic()
        return self._nodes


def local_resources() -> Resources:
    """The CPU cores that this process may use, and this machine's GPUs."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Resources(cpus, torch.cuda.device_count())


def concurrent_trials(settings: SweepSettings, machines: Sequence[Resources]) -> int:
    """How many trials are to run at one time: as many as fit, but for ``max_concurrent`` and the budget."""
    fit = sum(machine.fitting(settings) for machine in machines)
    asked = settings.max_concurrent
    if asked is not None:
        # A cluster is asked for more than fits now: an autoscaler then sees what is wanted.
        fit = asked if is_cluster(machines) else min(fit, asked)
    return min(fit, settings.trials or fit)


def check_fit(settings: SweepSettings, machines: Sequence[Resources]) -> None:
    """Refuse a sweep of which not one trial could start.

    Raises:
        ConfigError: a trial needs more than any machine has.
    """
    if concurrent_trials(settings, machines):
        return
    for name, needed in (("cpus", settings.cpus_per_trial), ("gpus", settings.gpus)):
        there = max((getattr(machine, name) for machine in machines), default=0)
        if needed > there:
            most = f"no node has more than {there}" if is_cluster(machines) else f"this machine has {there}"
            raise ConfigError(
                f"sweep.{name}_per_trial: {needed:g}: {most}; lower it with --set sweep.{name}_per_trial={there}"
            )
    raise ConfigError(
        f"sweep.cpus_per_trial {settings.cpus_per_trial:g} and gpus_per_trial {settings.gpus:g}: no node has "
        "both; lower one of them"
    )


def is_cluster(machines: Sequence[Resources]) -> bool:
    """Whether these are nodes of a cluster that was joined."""
    return any(machine.node is not None for machine in machines)


def _resolved(address: str) -> str:
    """``HOST:PORT`` of a cluster's head."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: Ray Client is not used here; run this command on a node of the cluster, with "
            "--address auto"
        )
    from ray._private.services import canonicalize_bootstrap_address_or_die  # no public name finds a running Ray

    try:
        return str(canonicalize_bootstrap_address_or_die(address))
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--address {address}: no Ray is found ({reason}); start one, or give HOST:PORT") from None
