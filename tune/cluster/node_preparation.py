"""Each node of a cluster before its first trial: the same code on all, the shared folder seen, the data prepared."""

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
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
from tune.cluster.nodes import LostNodeError, on_nodes
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import SweepConfig

__all__ = [
    "Prepare",
    "Prepared",
    "PreparedMachines",
    "UnfitNodeError",
    "check_nodes",
    "model_hashes",
    "prepare_machines",
    "storage_probe",
]

logger = logging.getLogger(__name__)


class Prepared(Protocol):
    """What a run's preparation leaves: its models, which know their files."""

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each model file by what it is, and what else results rest on."""


# Fetches the models of some runs and renders their data, so that trials find both.
Prepare = Callable[[Sequence[RunConfig]], Sequence[Prepared]]


class UnfitNodeError(NuancedError):
    """A node that joined later cannot run trials: other code, say."""


@dataclass(frozen=True)
class SharedStorageProbe:
    """A file for nodes to find: where trials' folders will be, and what is in it."""

    place: SharedFolder
    name: str
    text: str

    def problem(self) -> str | None:
        """What is wrong with the place, seen from the node that this runs on."""
        if self.place.read(self.name) != self.text:
            return (
                f"does not see {self.place.place}: put --outputs on a disk that all nodes share, or set sweep.shared "
                "to storage that all reach"
            )
        try:
            self.place.write(f"{self.name}-{secrets.token_hex(4)}", "")
        except DiskError as error:
            return str(error)
        return None


def check_nodes(machines: Sequence[Resources], meeting: SharedStorageProbe) -> dict[Resources, str]:
    """What is wrong with nodes: other code, versions or model files than here, or a folder that they do not see."""
    found = on_nodes(machines, _unfit, node_fingerprint(), meeting)
    return {machine: str(problem) for machine, problem in found.items() if problem is not None}


def prepare_machines(
    machines: Sequence[Resources], config: SweepConfig, prepare: Prepare, place: SharedFolder
) -> "PreparedMachines":
    """Prepare this machine or, of a cluster, check all nodes and prepare those on which trials fit, all at once.

    Args:
        place: in which trials' folders will be.

    Raises:
        ConfigError: nodes differ from one another, or do not see the place.
        NuancedError: what the preparation raised.
    """
    runs = config.runs_to_prepare()
    if not is_cluster(machines):
        return PreparedMachines(model_hashes(prepare(runs)), _nothing)
    with storage_probe(place) as meeting:
        problems = check_nodes(machines, meeting)
    if problems:
        machine, problem = next(iter(problems.items()))
        others = f" (and {len(problems) - 1} nodes more: nuanced doctor --address …)" if len(problems) > 1 else ""
        raise ConfigError(f"{machine.name}: {problem}{others}")
    fit = [machine for machine in machines if machine.fitting(config.sweep)]
    logger.info("preparing %s nodes: model files, clips, baselines", len(fit))
    models: dict[str, str] = {}
    took: dict[str, str] = {}
    ready: set[str] = set()
    for machine, found in on_nodes(fit, _prepare, prepare, runs, gpus=min(config.sweep.gpus, 1.0)).items():
        if isinstance(found, LostNodeError) and len(fit) > 1:
            logger.warning("%s: %s; the others go on", machine.name, found)
            continue
        if isinstance(found, NuancedError):
            raise found.__class__(f"{machine.name}: {found}")
        for name, digest in found.items():
            if models.setdefault(name, digest) != digest:
                raise ConfigError(
                    f"{machine.name}: {name}: SHA-256 {digest[:12]}, but {models[name][:12]} on {took[name]}; fetch "
                    "the same one on both (models.source)"
                )
            took.setdefault(name, machine.name)
        ready.add(str(machine.node))
    return PreparedMachines(models, partial(prepare_late_node, frozenset(ready), node_fingerprint(), prepare, runs))


@dataclass(frozen=True)
class PreparedMachines:
    """What was prepared: SHA-256 of the model files by what they are, and what a trial calls on its node.

    That prepares a node which joined later, or raises UnfitNodeError.
    """

    models: dict[str, str]
    prepare_late_node: Callable[[], None]


_prepared: set[str] = set()  # ids of this node, if this process knows that it is prepared


def prepare_late_node(
    known: frozenset[str], ours: NodeFingerprint, prepare: Prepare, runs: Sequence[RunConfig]
) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    if node in known or node in _prepared:
        return
    problem = fingerprint_difference(ours, node_fingerprint())
    if problem is None:
        try:
            _prepare(prepare, runs)
        except NuancedError as error:
            problem = str(error)
    if problem is not None:
        raise UnfitNodeError(f"node {ray.util.get_node_ip_address()}: {problem}")
    _prepared.add(node)


def _nothing() -> None:
    """A machine that was prepared before the first trial."""


def _unfit(ours: NodeFingerprint, meeting: SharedStorageProbe) -> str | None:
    return fingerprint_difference(ours, node_fingerprint()) or meeting.problem()


def _prepare(prepare: Prepare, runs: Sequence[RunConfig]) -> dict[str, str]:
    """Prepare the machine that this runs on, one process at a time; returns the hashes of the model files."""
    with locked(cache_dir() / "prepare.lock"):
        return model_hashes(prepare(runs))


@contextmanager
def storage_probe(place: SharedFolder) -> Iterator[SharedStorageProbe]:
    """A file in the place for as long as nodes look for it.

    Raises:
        DiskError: it cannot be written.
    """
    meeting = SharedStorageProbe(place, f".nodes-{secrets.token_hex(4)}", secrets.token_hex(8))
    place.write(meeting.name, meeting.text)
    try:
        yield meeting
    finally:
        place.remove(*(name for name in place.names() if name.startswith(meeting.name)))


def model_hashes(prepared: Sequence[Prepared]) -> dict[str, str]:
    """SHA-256 of all model files of some runs, by what they are."""
    models: dict[str, str] = {}
    for one in prepared:
        models |= one.hashes()
    return models
