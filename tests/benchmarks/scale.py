"""How a driver's cost grows with trials, with trials at a time and with nodes.

    python -m tests.benchmarks.scale [--trials 10000] [--nodes 200] [--samplers random,tpe] [--part ledger|cluster]

*ledger*: the driver's searcher, scheduler, ledger, study in a journal file and HPARAMS table without Ray, fed by
simulated trials of up to 9 epochs with the default pruner, four of them at a time on each of ``--nodes`` nodes. A row
for each thousand trials that have ended: CPU milliseconds of the driver's process per call of ask (a trial is chosen),
report (an epoch, with the pruner's decision), end, tick and table (HPARAMS of an ended trial), of the longest call, and
of all calls per ended trial (asks of trials that have not ended included, ticks too); epochs per trial; MiB of the
process and of the journal. Then the CPU seconds that ``nuanced status`` needs, and those to resume the study in another
process: to repair and read the journal, to make the ledger and the table, and to choose the first and the second trial.
Trials cost no time of their own, so 1000 / (CPU ms per trial) is how many trials a second one driver can serve.

*cluster*: the whole driver, with the toy of ``tests.benchmarks.sweep``, on Ray's test cluster: so many nodes on this
machine, each with its own raylet and one trial at a time, whose epochs do not sleep, so that trials wait for the driver
and for this machine's cores. By the number of nodes: seconds to start the cluster; MiB that the machine has less at the
end than before; milliseconds per trial and per epoch of wall-clock time; CPU milliseconds of the driver per trial, its
start and preparation included.

Each system is a process of its own.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.benchmarks.progress import Bench, benchmark

__all__ = ["main"]

TRIALS_PER_NODE = 4
ROOT = Path(__file__).parents[2]
_LEDGER = ("ask", "report", "end", "tick", "table", "longest", "per_trial", "epochs", "rss", "journal", "wall")
_CLUSTER = ("start_s", "mb", "trials", "wall_s", "ms_per_trial", "ms_per_epoch", "driver_cpu_ms")


def rows_of(module: str, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run a module with a job in a new process group, and yield what it prints, a row of JSON a line.

    Whatever ends the iteration, the group does not outlive it.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(job)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if child.wait():
            raise SystemExit(f"{job}: ended with {child.returncode}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def measure_ledger(bench: Bench, sampler: str, trials: int, slots: int) -> None:
    """Add the rows of one sampler."""
    bench.doing(f"{sampler}, {slots} trials at a time")
    with tempfile.TemporaryDirectory() as folder:
        job = {"sampler": sampler, "trials": trials, "folder": folder}
        for row in rows_of("tests.benchmarks.scale_ledger", {"task": "simulate", "slots": slots, "rows": 1000, **job}):
            if "ended" in row:
                bench.add(f"{sampler}, {row['ended']}", {column: row[column] for column in _LEDGER})
            else:
                bench.add(f"{sampler}, status, s", row["status"])
        for row in rows_of("tests.benchmarks.scale_ledger", {"task": "resume", **job}):
            for part, seconds in row["resume"].items():
                bench.add(f"{sampler}, resume, {part}, s", seconds)
            bench.add(f"{sampler}, resume, MiB", row["rss"])


def measure_cluster(bench: Bench, nodes: int, trials: int) -> None:
    """Add the row of one number of nodes."""
    bench.doing(f"Ray's test cluster of {nodes} nodes, {trials} trials")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Ray reads these when it is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{folder}/auth_token"}
        os.environ |= {"RAY_enable_worker_prestart": "0", "RAY_memory_monitor_refresh_ms": "0"}
        os.environ["NUANCED_CACHE"] = f"{folder}/cache"
        for row in rows_of("tests.benchmarks.scale_cluster", {"nodes": nodes, "trials": trials, "folder": folder}):
            bench.add(f"{nodes} nodes", {column: row[column] for column in _CLUSTER})


def main() -> None:
    """Measure the parts one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000, help="of the ledger, and at most 300 on a cluster")
    parser.add_argument("--nodes", type=int, default=200, help=f"simulated nodes, {TRIALS_PER_NODE} trials on each")
    parser.add_argument("--samplers", default="random,tpe")
    parser.add_argument("--part", choices=["ledger", "cluster"], help="measure only this part")
    parser.add_argument("--clusters", default="1,4,8,16", help="numbers of nodes of Ray's test cluster")
    arguments = parser.parse_args()
    with benchmark() as bench:
        if arguments.part in (None, "ledger"):
            for sampler in arguments.samplers.split(","):
                measure_ledger(bench, sampler, arguments.trials, TRIALS_PER_NODE * arguments.nodes)
        if arguments.part in (None, "cluster"):
            for nodes in arguments.clusters.split(","):
                measure_cluster(bench, int(nodes), min(300, arguments.trials))


if __name__ == "__main__":
    main()
