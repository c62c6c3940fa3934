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

Each system is a process of its own. Rows are printed at once; after Ctrl-C those that are complete stay.
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

__all__ = ["main"]

TRIALS_PER_NODE = 4
ROOT = Path(__file__).parents[2]
_LEDGER = ("ended", "ask", "report", "end", "tick", "table", "longest", "per_trial", "epochs", "rss", "journal", "wall")
_CLUSTER = ("nodes", "start_s", "mb", "trials", "wall_s", "ms_per_trial", "ms_per_epoch", "driver_cpu_ms")


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


def print_row(columns: tuple[str, ...], row: dict[str, Any] | None = None) -> None:
    """Print a row of a table, or its header."""
    cells = (
        columns if row is None else [f"{row[name]:.{0 if float(row[name]).is_integer() else 2}f}" for name in columns]
    )
    print(" ".join(f"{cell:>{max(8, len(name))}}" for name, cell in zip(columns, cells, strict=True)), flush=True)


def measure_ledger(sampler: str, trials: int, slots: int) -> None:
    """Print the table of one sampler."""
    print(f"\n{sampler}, {slots} trials at a time; CPU ms per call and per trial, MiB, wall-clock s", flush=True)
    print_row(_LEDGER)
    with tempfile.TemporaryDirectory() as folder:
        job = {"sampler": sampler, "trials": trials, "folder": folder}
        for row in rows_of("tests.benchmarks.scale_ledger", {"task": "simulate", "slots": slots, "rows": 1000, **job}):
            if "ended" in row:
                print_row(_LEDGER, row)
            else:
                print(f"status {row['status']:.2f} s; lowest loss {row['best']:.4f}", flush=True)
        for row in rows_of("tests.benchmarks.scale_ledger", {"task": "resume", **job}):
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["resume"].items())
            print(f"resume, s: {parts}; {row['rss']:.0f} MiB more than before", flush=True)


def measure_cluster(nodes: int, trials: int) -> None:
    """Print the row of one number of nodes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Ray reads these when it is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{folder}/auth_token"}
        os.environ |= {"RAY_enable_worker_prestart": "0", "RAY_memory_monitor_refresh_ms": "0"}
        os.environ["NUANCED_CACHE"] = f"{folder}/cache"
        for row in rows_of("tests.benchmarks.scale_cluster", {"nodes": nodes, "trials": trials, "folder": folder}):
            print_row(_CLUSTER, row)


def main() -> None:
    """Measure the parts one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000, help="of the ledger, and at most 300 on a cluster")
    parser.add_argument("--nodes", type=int, default=200, help=f"simulated nodes, {TRIALS_PER_NODE} trials on each")
    parser.add_argument("--samplers", default="random,tpe")
    parser.add_argument("--part", choices=["ledger", "cluster"], help="measure only this part")
    parser.add_argument("--clusters", default="1,4,8,16", help="numbers of nodes of Ray's test cluster")
    arguments = parser.parse_args()
    try:
        if arguments.part in (None, "ledger"):
            for sampler in arguments.samplers.split(","):
                measure_ledger(sampler, arguments.trials, TRIALS_PER_NODE * arguments.nodes)
        if arguments.part in (None, "cluster"):
            print("\nRay's test cluster", flush=True)
            print_row(_CLUSTER)
            for nodes in arguments.clusters.split(","):
                measure_cluster(int(nodes), min(300, arguments.trials))
    except KeyboardInterrupt:
        sys.exit("stopped; the rows above are complete")


if __name__ == "__main__":
    main()
