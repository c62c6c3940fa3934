"""Each node of a cluster before its first trial: the same code on all, the shared folder seen, the data prepared."""

import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nuanced_core.cache import locked
from nuanced_core.config import RunConfig
from nuanced_core.errors import ConfigError, DiskError, NuancedError
from nuanced_core.weights import cache_dir
from tune.cluster import ClusterError, Resources, is_cluster
from tune.config import SweepConfig
from tune.outputs import Prepare, model_hashes, versions

__all__ = ["NodeFacts", "check_nodes", "facts", "make_ready", "on_nodes", "ready_here", "seen_file"]

Say = Callable[[str], None]
T = TypeVar("T")

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("nuanced_core", "tune")


@dataclass(frozen=True)
class NodeFacts:
    """What has to be the same on all nodes, and whether the folder of the outputs is seen there."""

    code: str  # digest of the project's own modules
    python: str
    versions: dict[str, str]
    sees: bool = True


def facts(seen: Path | None = None) -> NodeFacts:
    """Of the machine that this runs on; ``seen`` is a file that it should be able to read."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    return NodeFacts(digest.hexdigest()[:12], platform.python_version(), versions(), seen is None or seen.is_file())


def check_nodes(machines: Sequence[Resources], seen: Path | None) -> dict[str, str]:
    """What is wrong with nodes, by name: other code or versions than this process's, or a folder that they do not see.

    Args:
        seen: a file in the sweep's folder, or None where that need not be shared.
    """
    ours = facts()
    problems = {}
    for machine, found in on_nodes(machines, facts, seen).items():
        problem = str(found) if isinstance(found, NuancedError) else _difference(ours, found)
        if problem is None and isinstance(found, NodeFacts) and not found.sees and seen is not None:
            problem = (
                f"does not see {seen.parent}: put --outputs on a disk that all nodes share, or set sweep.shared to "
                "storage that all reach"
            )
        if problem is not None:
            problems[machine.name] = problem
    return problems


def make_ready(
    machines: Sequence[Resources], config: SweepConfig, prepare: Prepare, say: Say, folder: Path
) -> dict[str, str]:
    """Prepare this machine or, of a cluster, check all nodes and prepare those on which trials fit, all at once.

    Args:
        folder: of the sweep, which may be yet to be made.

    Returns:
        SHA-256 of the model files by what they are.

    Raises:
        ConfigError: nodes differ from one another, or do not see the folder.
        NuancedError: what the preparation raised.
    """
    runs = config.runs_to_prepare()
    if not is_cluster(machines):
        return model_hashes(prepare(runs, say))
    with seen_file(folder) as seen:
        problems = check_nodes(machines, None if config.sweep.shared else seen)
    if problems:
        name, problem = next(iter(problems.items()))
        others = f" (and {len(problems) - 1} nodes more: nuanced doctor --address …)" if len(problems) > 1 else ""
        raise ConfigError(f"{name}: {problem}{others}")
    fit = [machine for machine in machines if machine.fitting(config.sweep)]
    say(f"preparing {len(fit)} nodes: model files, clips, baselines")
    models: dict[str, str] = {}
    took: dict[str, str] = {}
    for machine, found in on_nodes(fit, _prepare, prepare, runs, gpus=min(config.sweep.gpus, 1.0)).items():
        if isinstance(found, NuancedError):
            raise found.__class__(f"{machine.name}: {found}")
        for name, digest in found.items():
            if models.setdefault(name, digest) != digest:
                raise ConfigError(
                    f"{machine.name}: {name}: SHA-256 {digest[:12]}, but {models[name][:12]} on {took[name]}; fetch "
                    "the same one on both (models.source)"
                )
            took.setdefault(name, machine.name)
        say(f"{machine.name}: ready")
    return models


def ready_here(machines: Sequence[Resources], prepare: Prepare, config: SweepConfig) -> Callable[[], None]:
    """For trials to call, on whatever node they are: prepares it if it is none of ``machines``, but joined later."""
    if not is_cluster(machines):
        return _nothing
    known = frozenset(str(machine.node) for machine in machines if machine.fitting(config.sweep))
    return partial(_prepare_newcomer, known, prepare, config.runs_to_prepare())


_ready: set[str] = set()  # ids of this node, if this process knows that it is prepared


def _prepare_newcomer(known: frozenset[str], prepare: Prepare, runs: Sequence[RunConfig]) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    if node not in known and node not in _ready:
        _prepare(prepare, runs)
        _ready.add(node)


def _nothing() -> None:
    """A machine that was prepared before the first trial."""


def on_nodes(
    machines: Sequence[Resources], call: Callable[..., T], *arguments: Any, gpus: float = 0.0
) -> dict[Resources, T | NuancedError]:
    """What ``call`` returns on each node, or what went wrong there; all at the same time, in order."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A process for this call alone: what it held of a GPU goes with it.
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_calls=1, max_retries=0)(call)
    running = {}
    for machine in machines:
        here = "DEFAULT" if machine.node is None else NodeAffinitySchedulingStrategy(machine.node, soft=False)
        running[machine] = task.options(scheduling_strategy=here).remote(*arguments)
    found: dict[Resources, T | NuancedError] = {}
    for machine, answer in running.items():
        try:
            found[machine] = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, NuancedError):
                found[machine] = cause
            elif isinstance(cause, ModuleNotFoundError) or "ModuleNotFoundError" in str(error):
                reason = str(error).strip().splitlines()[-1]
                found[machine] = ConfigError(f"the project is not installed there ({reason}); run 'make setup' on it")
            else:
                found[machine] = ClusterError(" ".join(str(error).strip().splitlines()[-1].split())[:300])
        except ray.exceptions.RayError as error:
            found[machine] = ClusterError(f"does not answer: {' '.join(str(error).split())[:200]}")
    return found


def _prepare(prepare: Prepare, runs: Sequence[RunConfig]) -> dict[str, str]:
    """Prepare the machine that this runs on, one process at a time; returns the hashes of the model files."""
    with locked(cache_dir() / "prepare.lock"):
        return model_hashes(prepare(runs, lambda line: None))


@contextmanager
def seen_file(folder: Path) -> Iterator[Path]:
    """A file beside the folder, for nodes to find."""
    file = folder.absolute().with_name(f".{folder.name}.seen-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise DiskError(f"{file}: cannot be written: {error.strerror}") from None
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _difference(ours: NodeFacts, its: NodeFacts) -> str | None:
    if its.python.rpartition(".")[0] != ours.python.rpartition(".")[0]:
        return f"has Python {its.python}, the driver {ours.python}; install the same there"
    for package, version in ours.versions.items():
        other = its.versions.get(package)
        if other != version:
            return f"has {package} {other}, the driver {version}; run 'make setup' of the same commit there"
    if its.code != ours.code:
        return f"has other code ({its.code}, the driver {ours.code}); check the same commit out there"
    return None
