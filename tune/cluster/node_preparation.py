"""Preparation of nodes before their first trial: same software, shared storage reachable, data rendered."""

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from nuanced_core.config.settings import RunConfig
from nuanced_core.data.cache import locked
from nuanced_core.errors import ConfigError, DiskError, NuancedError
from nuanced_core.weights.store import cache_dir
from tune.cluster.fingerprint import NodeFingerprint, fingerprint_difference, node_fingerprint
from tune.cluster.machines import Resources, is_cluster
from tune.cluster.nodes import ANSWER_SECONDS, LostNodeError, on_nodes
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import SweepConfig

__all__ = [
    "Prepare",
    "Prepared",
    "PreparedMachines",
    "SharedStorageProbe",
    "UnfitNodeError",
    "check_nodes",
    "model_hashes",
    "prepare_late_node",
    "prepare_machines",
    "storage_probe",
]

logger = logging.getLogger(__name__)
_prepared: set[str] = set()  # this node's id, once this process knows that the node is prepared


class Prepared(Protocol):
    """What the preparation of a run returns."""

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each model file by its role, and of what else results depend on."""


# Fetches the models of some runs and renders their data, so that trials find both.
Prepare = Callable[[Sequence[RunConfig]], Sequence[Prepared]]


class UnfitNodeError(NuancedError):
    """A node that joined later cannot run trials, for example because its code differs."""


@dataclass(frozen=True)
class SharedStorageProbe:
    """A file in the folder that trials write to, which every node has to find.

    Attributes:
        folder: of the probe.
        name: of the file.
        text: its content.
    """

    folder: SharedFolder
    name: str
    text: str

    def problem(self) -> str | None:
        """Describe why this node cannot read the file or write to its folder; None if it can."""
        if self.folder.read(self.name) != self.text:
            return (
                f"does not see {self.folder.location}: put --outputs on a disk that all nodes share, or set "
                "sweep.shared to storage that all reach"
            )
        try:
            self.folder.write(f"{self.name}-{secrets.token_hex(4)}", "")
        except DiskError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class PreparedMachines:
    """The outcome of a preparation.

    Attributes:
        models: SHA-256 of each model file by its role.
        prepare_late_node: called by each trial on its node; prepares a node that joined after the preparation, or
            raises UnfitNodeError.
    """

    models: dict[str, str]
    prepare_late_node: Callable[[], None]


def prepare_machines(
    machines: Sequence[Resources], config: SweepConfig, prepare: Prepare, folder: SharedFolder
) -> PreparedMachines:
    """Prepare this machine; or check all nodes of a cluster, and prepare those that trials fit on, at the same time.

    Args:
        folder: the parent of the sweep's folder in the storage that trials write to.

    Raises:
        ConfigError: nodes differ from the driver or from one another, or do not see the folder.
        NuancedError: ``prepare`` raised it.
    """
    runs = config.runs_to_prepare()
    if not is_cluster(machines):
        return PreparedMachines(model_hashes(prepare(runs)), _do_nothing)
    _require_fit_nodes(machines, folder)
    with_capacity = [machine for machine in machines if machine.capacity(config.sweep)]
    logger.info("preparing %d nodes: model files, clips, baselines", len(with_capacity))
    results = on_nodes(with_capacity, _prepare, prepare, runs, gpus=min(config.sweep.gpus, 1.0), log_progress=True)
    hashes: dict[Resources, dict[str, str]] = {}
    for machine, result in results.items():
        if isinstance(result, LostNodeError) and len(with_capacity) > 1:
            logger.warning("%s: %s; continuing on the other nodes", machine.name, result)
        elif isinstance(result, NuancedError):
            raise result.__class__(f"{machine.name}: {result}")
        else:
            hashes[machine] = result
    prepared = frozenset(str(machine.node) for machine in hashes)
    return PreparedMachines(
        _merged_hashes(hashes), partial(prepare_late_node, prepared, node_fingerprint(), prepare, runs)
    )


def prepare_late_node(
    prepared: frozenset[str], driver: NodeFingerprint, prepare: Prepare, runs: Sequence[RunConfig]
) -> None:
    """Check and prepare the node that this runs on, unless that is done.

    Args:
        prepared: Ray's ids of the nodes that were prepared before the first trial.
        driver: fingerprint of the driver's node.

    Raises:
        UnfitNodeError: the node differs from the driver, or cannot be prepared.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    if node in prepared or node in _prepared:
        return
    problem = fingerprint_difference(driver, node_fingerprint())
    if problem is None:
        try:
            _prepare(prepare, runs)
        except NuancedError as error:
            problem = str(error)
    if problem is not None:
        raise UnfitNodeError(f"node {ray.util.get_node_ip_address()}: {problem}")
    _prepared.add(node)


def check_nodes(machines: Sequence[Resources], probe: SharedStorageProbe) -> dict[Resources, str]:
    """Return the problem of each node that differs from the driver in software or model files, or misses the probe."""
    found = on_nodes(machines, _node_problem, node_fingerprint(), probe, timeout=ANSWER_SECONDS)
    return {machine: str(problem) for machine, problem in found.items() if problem is not None}


@contextmanager
def storage_probe(folder: SharedFolder) -> Iterator[SharedStorageProbe]:
    """Write a probe file, and remove it and what nodes wrote beside it at the end of the context.

    Raises:
        DiskError: it cannot be written.
    """
    probe = SharedStorageProbe(folder.in_memory(), f".nodes-{secrets.token_hex(4)}", secrets.token_hex(8))
    folder.write(probe.name, probe.text)
    try:
        yield probe
    finally:
        folder.remove(*(name for name in folder.names() if name.startswith(probe.name)))


def model_hashes(prepared: Sequence[Prepared]) -> dict[str, str]:
    """Return the SHA-256 of all model files of some runs by their roles."""
    models: dict[str, str] = {}
    for one in prepared:
        models |= one.hashes()
    return models


def _require_fit_nodes(machines: Sequence[Resources], folder: SharedFolder) -> None:
    """Raise ConfigError for the first node that ``check_nodes`` finds a problem of, with the number of others."""
    with storage_probe(folder) as probe:
        problems = check_nodes(machines, probe)
    if problems:
        machine, problem = next(iter(problems.items()))
        others = f" (and {len(problems) - 1} nodes more: nuanced doctor --address …)" if len(problems) > 1 else ""
        raise ConfigError(f"{machine.name}: {problem}{others}")


def _merged_hashes(hashes: Mapping[Resources, Mapping[str, str]]) -> dict[str, str]:
    """Merge the model hashes of all nodes; raise ConfigError if two nodes have different files of the same role."""
    models: dict[str, str] = {}
    first: dict[str, str] = {}  # name of the node that each hash comes from
    for machine, found in hashes.items():
        for name, digest in found.items():
            if models.setdefault(name, digest) != digest:
                raise ConfigError(
                    f"{machine.name}: {name}: SHA-256 {digest[:12]}, but {models[name][:12]} on {first[name]}; fetch "
                    "the same one on both (models.source)"
                )
            first.setdefault(name, machine.name)
    return models


def _node_problem(driver: NodeFingerprint, probe: SharedStorageProbe) -> str | None:
    return fingerprint_difference(driver, node_fingerprint()) or probe.problem()


def _prepare(prepare: Prepare, runs: Sequence[RunConfig]) -> dict[str, str]:
    """Prepare the machine that this runs on, one process at a time; return the hashes of the model files."""
    with locked(cache_dir() / "prepare.lock"):
        return model_hashes(prepare(runs))


def _do_nothing() -> None:
    """Stand for ``prepare_late_node`` on a single machine, which was prepared before the first trial."""
