"""Each node of a cluster before its first trial: the same code on all, the shared folder seen, the data prepared."""

import hashlib
import platform
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nuanced_core.cache import locked
from nuanced_core.config import RunConfig
from nuanced_core.errors import ConfigError, DiskError, NuancedError
from nuanced_core.weights import cache_dir, cached
from tune.cluster import ClusterError, Resources, is_cluster
from tune.config import SweepConfig
from tune.outputs import Prepare, model_hashes, versions
from tune.shared import SharedFolder

__all__ = ["NodeFacts", "Ready", "UnfitNodeError", "check_nodes", "facts", "make_ready", "meeting_at", "on_nodes"]

Say = Callable[[str], None]
T = TypeVar("T")

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("nuanced_core", "tune")
_PATIENCE = 30.0  # seconds that nodes work in silence


class UnfitNodeError(NuancedError):
    """A node that joined later cannot run trials: other code, say."""


@dataclass(frozen=True)
class NodeFacts:
    """What has to be the same on all nodes."""

    code: str  # digest of the project's own modules and sentences
    python: str
    versions: dict[str, str]
    models: dict[str, str]  # SHA-256 of the model files that are there, by name


@dataclass(frozen=True)
class Meeting:
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


def facts() -> NodeFacts:
    """Of the machine that this runs on."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted(path for path in (_ROOT / package).rglob("*") if path.suffix in (".py", ".txt")):
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    models = {file.name: file.sha256 for file in cached()}
    return NodeFacts(digest.hexdigest()[:12], platform.python_version(), versions(), models)


def check_nodes(machines: Sequence[Resources], meeting: Meeting) -> dict[Resources, str]:
    """What is wrong with nodes: other code, versions or model files than here, or a folder that they do not see."""
    found = on_nodes(machines, _unfit, facts(), meeting)
    return {machine: str(problem) for machine, problem in found.items() if problem is not None}


def make_ready(
    machines: Sequence[Resources], config: SweepConfig, prepare: Prepare, say: Say, place: SharedFolder
) -> "Ready":
    """Prepare this machine or, of a cluster, check all nodes and prepare those on which trials fit, all at once.

    Args:
        place: in which trials' folders will be.

    Raises:
        ConfigError: nodes differ from one another, or do not see the place.
        NuancedError: what the preparation raised.
    """
    runs = config.runs_to_prepare()
    if not is_cluster(machines):
        return Ready(model_hashes(prepare(runs, say)), _nothing)
    with meeting_at(place) as meeting:
        problems = check_nodes(machines, meeting)
    if problems:
        machine, problem = next(iter(problems.items()))
        others = f" (and {len(problems) - 1} nodes more: nuanced doctor --address …)" if len(problems) > 1 else ""
        raise ConfigError(f"{machine.name}: {problem}{others}")
    fit = [machine for machine in machines if machine.fitting(config.sweep)]
    say(f"preparing {len(fit)} nodes: model files, clips, baselines")
    models: dict[str, str] = {}
    took: dict[str, str] = {}
    ready: set[str] = set()
    for machine, found in on_nodes(fit, _prepare, prepare, runs, gpus=min(config.sweep.gpus, 1.0), say=say).items():
        if isinstance(found, LostNodeError) and len(fit) > 1:
            say(f"{machine.name}: {found}; the others go on")
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
    return Ready(models, partial(_prepare_newcomer, frozenset(ready), facts(), prepare, runs))


@dataclass(frozen=True)
class Ready:
    """What was prepared: SHA-256 of the model files by what they are, and what a trial calls on its node.

    That prepares a node which joined later, or raises UnfitNodeError.
    """

    models: dict[str, str]
    newcomer: Callable[[], None]


_prepared: set[str] = set()  # ids of this node, if this process knows that it is prepared


def _prepare_newcomer(known: frozenset[str], ours: NodeFacts, prepare: Prepare, runs: Sequence[RunConfig]) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    if node in known or node in _prepared:
        return
    problem = _difference(ours, facts())
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


class LostNodeError(ClusterError):
    """A node does not answer any more."""


def on_nodes(
    machines: Sequence[Resources],
    call: Callable[..., T],
    *arguments: Any,
    gpus: float = 0.0,
    say: Say = lambda line: None,
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
                say(f"{machine.name}: ready")
        if not answered:
            busy = f", which needs {gpus:g} of a GPU" if gpus else ""
            say(f"still at work{busy}: {', '.join(machine.name for machine in waiting.values())}")
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


def _unfit(ours: NodeFacts, meeting: Meeting) -> str | None:
    return _difference(ours, facts()) or meeting.problem()


def _prepare(prepare: Prepare, runs: Sequence[RunConfig]) -> dict[str, str]:
    """Prepare the machine that this runs on, one process at a time; returns the hashes of the model files."""
    with locked(cache_dir() / "prepare.lock"):
        return model_hashes(prepare(runs, lambda line: None))


@contextmanager
def meeting_at(place: SharedFolder) -> Iterator[Meeting]:
    """A file in the place for as long as nodes look for it.

    Raises:
        DiskError: it cannot be written.
    """
    meeting = Meeting(place, f".nodes-{secrets.token_hex(4)}", secrets.token_hex(8))
    place.write(meeting.name, meeting.text)
    try:
        yield meeting
    finally:
        place.remove(*(name for name in place.names() if name.startswith(meeting.name)))


def _difference(ours: NodeFacts, its: NodeFacts) -> str | None:
    if its.python.rpartition(".")[0] != ours.python.rpartition(".")[0]:
        return f"has Python {its.python}, the driver {ours.python}; install the same there"
    for package, version in ours.versions.items():
        other = its.versions.get(package)
        if other != version:
            return f"has {package} {other}, the driver {version}; run 'make setup' of the same commit there"
    if its.code != ours.code:
        return f"has other code ({its.code}, the driver {ours.code}); check the same commit out there"
    for name, digest in ours.models.items():
        other = its.models.get(name, digest)
        if other != digest:
            return f"has another {name} (SHA-256 {other[:12]}, the driver {digest[:12]}); fetch it again on one of them"
    return None
