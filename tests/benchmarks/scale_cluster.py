"""A toy sweep with the whole driver on Ray's test cluster: one row of ``tests.benchmarks.scale``, as JSON."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.sweep_toy import SPACE, ToyRun
from tests.tune.toy import prepare

__all__ = ["measure"]

EPOCHS = 3


def _available_mb() -> float:
    """Return the memory of this machine that is available, in MiB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024


def measure(nodes: int, trials: int, folder: Path) -> dict[str, float]:
    """Run the sweep on a head without CPUs and ``nodes`` nodes of one pretended CPU each."""
    from ray.cluster_utils import Cluster

    from tune.cluster import disk
    from tune.cluster.authentication import use_token
    from tune.cluster.machines import JoinedCluster
    from tune.config.sweep_config import load_sweep_config
    from tune.sweep.driver import SweepServices, run_sweep

    use_token(create=True)
    before, began = _available_mb(), time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    started = time.perf_counter() - began
    file = folder / "sweep.yaml"
    file.write_text(SPACE)
    settings = [f"sweep.trials={trials}", f"sweep.outputs={folder}", "sweep.memory_per_trial=null"]
    disk.BYTES_PER_TRIAL = 0  # these trials write no weights
    services = SweepServices(
        machines=JoinedCluster(cluster.address), start_run=partial(ToyRun, sleep=0.0), prepare=prepare
    )
    spans: list[tuple[float, float]] = []
    _watch(spans)
    cpu = time.process_time()
    run_sweep(load_sweep_config(file, [*settings, f"train.epochs={EPOCHS}"]), name="toy", services=services)
    cpu, left = time.process_time() - cpu, _available_mb()
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    cluster.shutdown()
    return {
        "nodes": nodes,
        "start_s": started,
        "mb": before - left,
        "trials": trials,
        "wall_s": wall,
        "ms_per_trial": 1000 * wall / trials,
        "ms_per_epoch": 1000 * wall / len(spans),
        "driver_cpu_ms": 1000 * cpu / trials,
    }


def _watch(spans: list[tuple[float, float]]) -> None:
    """Append the start and the end of each epoch that the driver gets."""
    from tune.show.progress import Progress
    from tune.trial.reports import unpack_scalars

    show = Progress.on_trial_result

    def on_trial_result(self: Progress, *args: Any, **info: Any) -> None:
        scalars = unpack_scalars(info["result"])
        spans.append((scalars["toy/started"], scalars["toy/ended"]))
        show(self, *args, **info)

    setattr(Progress, "on_trial_result", on_trial_result)  # noqa: B010 (a method, for mypy)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(measure(**{**job, "folder": Path(job["folder"])})), flush=True)
