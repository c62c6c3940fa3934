"""What the workers of a sweep with the real models spend their time on.

    python -m tests.benchmarks.trials [--json] [CONFIG] [--set KEY=VALUE …]

Runs the sweep in a folder of its own and times, in the trials' processes, the start of each run, its training steps
and its epochs. A worker's time is that from its first trial's start to its last one's end. ``training`` is the share of
it in training steps; the rest is validation with the sound and checkpoints that follow it, the starts of runs, and
what lies between (Ray, Optuna, TensorBoard). ``start of a trial on a warm actor`` is the time until its first step may
begin, of all trials but the first of each process, which loads Kokoro.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuanced_core.config.settings import RunConfig
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import Report, Run, start_run
from tune.config.sweep_config import load_sweep
from tune.sweep.driver import SweepServices, run_sweep

TIMES = "times.json"


class TimedRun:
    """A run that notes what its time went to, in its folder."""

    def __init__(self, config: RunConfig, folder: Path, report: Report) -> None:
        begun = time.time()
        self._run: Run = start_run(config, folder, report)
        self._file, self._steps = folder / TIMES, config.train.steps_per_epoch
        self._times: dict[str, Any] = {"pid": os.getpid(), "begun": begun, "started": time.time(), "epochs": []}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def run_epoch(self) -> dict[str, float]:
        begun = time.time()
        scalars = self._run.run_epoch()
        trained = self._steps / scalars["train/steps_per_second"]
        self._times["epochs"].append({"begun": begun, "ended": time.time(), "trained": trained})
        self._file.write_text(json.dumps(self._times))
        return scalars


def shares(folder: Path) -> dict[str, float]:
    """Of a sweep's folder: shares of the workers' time, and seconds."""
    trials = sorted((json.loads(f.read_text()) for f in folder.glob(f"trials/*/{TIMES}")), key=lambda t: t["begun"])
    workers: dict[int, list[Any]] = {}
    for trial in trials:
        workers.setdefault(trial["pid"], []).append(trial)
    epochs = [epoch for trial in trials for epoch in trial["epochs"]]
    trained = sum(epoch["trained"] for epoch in epochs)
    validated = sum(epoch["ended"] - epoch["begun"] for epoch in epochs) - trained
    starts = sum(trial["started"] - trial["begun"] for trial in trials)
    whole = sum(own[-1]["epochs"][-1]["ended"] - own[0]["begun"] for own in workers.values())
    warm = [trial["started"] - trial["begun"] for own in workers.values() for trial in own[1:]]
    return {
        "trials": len(trials),
        "workers": len(workers),
        "epochs": len(epochs),
        "seconds of all workers": whole,
        "training": trained / whole,
        "validation, sound, checkpoints": validated / whole,
        "starts of runs": starts / whole,
        "between": 1 - (trained + validated + starts) / whole,
        "start of a trial on a warm actor, s (longest)": max(warm, default=float("nan")),
    }


def main() -> None:
    """Run the sweep and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/quickstart.yaml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load_sweep(arguments.config, [*arguments.overrides, f"sweep.outputs={folder}"])
        services = SweepServices(
            start=TimedRun, prepare=prepare, say=lambda line: print(line, file=sys.stderr, flush=True)
        )
        result = run_sweep(config, name="trials", services=services)
        found: Mapping[str, float] = shares(result.folder)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:48} {value:.3f}" if isinstance(value, float) else f"{name:48} {value}")


if __name__ == "__main__":
    main()
