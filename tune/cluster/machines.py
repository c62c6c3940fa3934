"""The machines that trials run on: this one, with its own Ray, or the nodes of a Ray cluster that is joined."""

import math
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from nuanced_core.errors import ConfigError, one_line
from nuanced_core.machine_limits import available_memory, memory_limit, usable_cpus
from tune.cluster.authentication import check_authentication, use_token
from tune.cluster.ray_runtime import RAY_ENVIRONMENT, check_local_ray, joined_ray, local_ray
from tune.config.sweep_settings import SweepSettings

__all__ = [
    "JoinedCluster",
    "Machines",
    "Resources",
    "ThisMachine",
    "check_fit",
    "concurrency_limit",
    "concurrent_trials",
    "is_cluster",
    "local_resources",
]
# Passed on to the processes of a joined cluster, which may have been started with other values.
_PASSED_VARIABLES = (
    "RAY_CHDIR_TO_TRIAL_DIR",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "NUANCED_CACHE",
    "NUANCED_CACHE_LIMIT",
)
# Bytes. Ray's object store holds one function and small dicts.
_OBJECT_STORE = 128 * 2**20
# Bytes that no trial gets: Ray's processes, and what the driver grows by while it prepares data (1.3 GB measured).
MEMORY_RESERVE = int(1.4e9)
_REFRESH_SECONDS = 5.0  # age at which the list of a cluster's nodes is read again


@dataclass(frozen=True)
class Resources:
    """What trials can use of one machine.

    Attributes:
        cpus: CPU cores.
        gpus: number of GPUs.
        name: for messages.
        node: Ray's id of the node; None unless it belongs to a joined cluster.
        memory: bytes; None if it is not known, and then limits nothing.
        memory_limit: bytes that trials could use if nothing else ran on the machine; None if it is not known.
    """

    cpus: int
    gpus: int
    name: str = "this machine"
    node: str | None = None
    memory: int | None = None
    memory_limit: int | None = None

    def capacity(self, settings: SweepSettings) -> int:
        """Return how many trials fit at the same time."""
        return min(self.capacities(settings).values())

    def capacities(self, settings: SweepSettings) -> dict[str, int]:
        """Return how many trials would fit if one resource alone limited them, by the name of the resource."""
        fits = {"cpus": int(self.cpus // settings.cpus_per_trial)}
        per_gpu = settings.gpus
        if 0 < per_gpu <= 1:
            fits["gpus"] = self.gpus * int(1 / per_gpu + 1e-6)
        elif per_gpu:
            fits["gpus"] = int(self.gpus // per_gpu)
        if settings.memory and self.memory is not None:
            fits["memory"] = self.memory // settings.memory
        return fits


class Machines(Protocol):
    """Where a sweep runs."""

    @property
    def options(self) -> str:
        """Options of ``nuanced sweep`` that select these machines, with a leading space, or an empty string."""

    def joined(self) -> AbstractContextManager[None]:
        """Make the resources known: the context in which ``resources`` may be called."""

    def started(self) -> AbstractContextManager[None]:
        """Run Ray for the duration of the context."""

    def resources(self) -> list[Resources]:
        """Return what each machine has now."""


class ThisMachine:
    """This machine, with a Ray that this process starts and stops.

    Args:
        temp: folder for Ray's temporary folder; None for $RAY_TMPDIR or the system's temporary folder.
    """

    def __init__(self, temp: str | None = None) -> None:
        self._temp = temp
        self._measured: Resources | None = None

    @property
    def options(self) -> str:
        """Option that selects the temporary folder."""
        return "" if self._temp is None else f" --temp {shlex.quote(self._temp)}"

    def joined(self) -> AbstractContextManager[None]:
        """Check that Ray can start: this machine's resources are known without it, so that errors come before.

        Raises:
            ConfigError, DiskError: Ray cannot run in this Python environment, or with its temporary folder.
        """
        check_local_ray(self._temp)
        return nullcontext()

    @contextmanager
    def started(self) -> Iterator[None]:
        """Run Ray on this machine, or use the one that already runs in this process.

        Raises:
            ClusterError: Ray does not start.
            DiskError: its temporary folder cannot be written.
            ConfigError: Ray cannot run in this Python environment, or others can read the token.
        """
        use_token(create=True)
        (machine,) = self.resources()
        with local_ray(
            self._temp,
            num_cpus=machine.cpus,
            num_gpus=machine.gpus,
            _memory=machine.memory or None,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
        ):
            yield

    def resources(self) -> list[Resources]:
        """Return what this machine has; its memory is measured by the first call, before trials use it."""
        self._measured = self._measured or local_resources()
        return [self._measured]


@dataclass
class JoinedCluster:
    """A running Ray cluster; this process runs on one of its nodes.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto`` for the cluster that this machine belongs to.
        insecure: whether a cluster that requires no token may be joined.
    """

    address: str
    insecure: bool = False
    _refreshed: float = field(default=-math.inf, init=False)
    _nodes: list[Resources] = field(default_factory=list, init=False)

    @property
    def options(self) -> str:
        """Options that select this cluster."""
        return f" --address {shlex.quote(self.address)}{' --insecure' if self.insecure else ''}"

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the cluster for the duration of the context.

        Raises:
            ConfigError: no Ray answers at the address, the cluster requires no token, or it rejects this process's.
            ClusterError: this process cannot join it.
        """
        address = _resolved(self.address)
        check_authentication(address, insecure=self.insecure)
        values = {name: os.environ.get(name, RAY_ENVIRONMENT.get(name)) for name in _PASSED_VARIABLES}
        variables = {name: value for name, value in values.items() if value is not None}
        with joined_ray(address, runtime_env={"env_vars": variables}):
            yield

    def started(self) -> AbstractContextManager[None]:
        """Do nothing: the cluster is running."""
        return nullcontext()

    def resources(self) -> list[Resources]:
        """Return what Ray says of each node that is alive, at most 5 s old."""
        import ray

        if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._nodes = [
                Resources(
                    int(node["Resources"].get("CPU", 0)),
                    int(node["Resources"].get("GPU", 0)),
                    f"node {node['NodeManagerAddress']}",
                    node["NodeID"],
                    int(node["Resources"].get("memory", 0)),
                )
                for node in ray.nodes()
                if node["Alive"]
            ]
            self._refreshed = time.monotonic()
        return self._nodes


def local_resources() -> Resources:
    """Return what this machine has for trials: the CPU cores and the memory are those that this process may use."""
    import torch

    memory, limit = (max(0, found - MEMORY_RESERVE) for found in (available_memory(), memory_limit()))
    return Resources(usable_cpus(), torch.cuda.device_count(), memory=memory, memory_limit=limit)


def concurrent_trials(settings: SweepSettings, machines: Sequence[Resources]) -> int:
    """Return how many trials to run at the same time: as many as fit, limited by ``max_concurrent`` and the budget.

    On a cluster ``max_concurrent`` may exceed what fits: an autoscaler then sees what is requested.
    """
    fits = sum(machine.capacity(settings) for machine in machines)
    limit = settings.max_concurrent
    if limit is not None:
        fits = limit if is_cluster(machines) else min(fits, limit)
    return min(fits, settings.trials or fits)


def check_fit(settings: SweepSettings, machines: Sequence[Resources]) -> None:
    """Check that at least one trial of a sweep could start.

    Raises:
        ConfigError: a trial needs more than any machine has.
    """
    if concurrent_trials(settings, machines):
        return
    has = "no node has more than" if is_cluster(machines) else "this machine has"
    for name, needed in (("cpus", settings.cpus_per_trial), ("gpus", settings.gpus)):
        most = max((getattr(machine, name) for machine in machines), default=0)
        if needed > most:
            raise ConfigError(
                f"sweep.{name}_per_trial: {needed:g}: {has} {most}; lower it with --set sweep.{name}_per_trial={most}"
            )
    memory = max((math.inf if machine.memory is None else machine.memory for machine in machines), default=0)
    if settings.memory > memory:
        raise ConfigError(
            f"sweep.memory_per_trial: {settings.memory / 1e9:.1f} GB: {has} {memory / 1e9:.1f} GB for trials; lower "
            "train.spoken, train.window_frames or train.batch_size, or set sweep.memory_per_trial to what a trial "
            "takes (null: no limit)"
        )
    raise ConfigError(
        f"sweep.cpus_per_trial {settings.cpus_per_trial:g}, gpus_per_trial {settings.gpus:g} and memory_per_trial "
        f"{settings.memory / 1e9:.1f} GB: no node has all of them; lower one of them"
    )


def concurrency_limit(settings: SweepSettings, machines: Sequence[Resources]) -> str:
    """Describe what keeps ``concurrent_trials`` from being larger, such as ``memory: 14.0 GB for trials of 2.3 GB``."""
    trials = concurrent_trials(settings, machines)
    capacities = [machine.capacities(settings) for machine in machines]
    if trials != sum(min(fits.values()) for fits in capacities):
        name = "max_concurrent" if trials == settings.max_concurrent else "trials"
        return f"sweep.{name}: {trials}"
    # Over several nodes, the resource of which the cluster as a whole has the least.
    names = dict.fromkeys(name for fits in capacities for name in fits)
    scarcest = min(names, key=lambda name: sum(fits.get(name, 0) for fits in capacities))
    total = sum(getattr(machine, scarcest) or 0 for machine in machines)
    if scarcest == "memory":
        return f"memory: {total / 1e9:.1f} GB for trials of {settings.memory / 1e9:.1f} GB"
    needed, unit = (settings.gpus, "GPUs") if scarcest == "gpus" else (settings.cpus_per_trial, "CPU cores")
    return f"{unit}: {total} for trials of {needed:.3g}"


def is_cluster(machines: Sequence[Resources]) -> bool:
    """Return whether these are nodes of a joined cluster."""
    return any(machine.node is not None for machine in machines)


def _resolved(address: str) -> str:
    """Return ``HOST:PORT`` of a cluster's head."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: Ray Client is not supported; run this command on a node of the cluster, with "
            "--address auto"
        )
    from ray._private.services import canonicalize_bootstrap_address_or_die  # no public function finds a running Ray

    try:
        return str(canonicalize_bootstrap_address_or_die(address))
    except (ConnectionError, ValueError) as error:
        reason = one_line(error)
        raise ConfigError(f"--address {address}: no Ray is found ({reason}); start one, or give HOST:PORT") from None
