"""Where the workers of a sweep with the real models spend their time.

    python -m tests.benchmarks.trials [--json] [CONFIG] [--set KEY=VALUE …]

Runs the sweep, by default a small one (``SMALL``), in a temporary folder. In the trials' processes, the start of each
run, its training steps and its epochs are timed. A worker's time is the time from the start of its first trial to the
end of its last one. Rows:

- ``training``: the share of the workers' time in training steps.
- ``validation, sound, checkpoints``: the share in the rest of the epochs.
- ``starts of runs``: the share before the first step of each run.
- ``between``: the remaining share (Ray, Optuna, TensorBoard).
- ``start of a trial on a warm actor``: the longest time until the first step may begin, over all trials except the
  first one of each process, which loads Kokoro.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from nuanced_core.config.settings import RunConfig
from nuanced_core.training.run import Report, Run, start_run
from tests.benchmarks.progress import benchmark
from tune.config.sweep_config import load_sweep_config
from tune.sweep.driver import SweepServices, run_sweep

TIMES_FILE = "times.json"  # in a trial's folder
SMALL = """
data:
  voices: [af_heart, am_michael, bf_emma, bm_george]
  sentences_per_voice: 2
  max_phonemes: 36
  val_voices: [af_sky, am_puck]
  val_sentences_per_voice: 2
augment: {copies: 0}
train: {epochs: 1, steps_per_epoch: 30, batch_size: 8, spoken: 1, speak_every: 3}
objective: {window_frames: 40}
show: {clips: 1}
search:
  train.learning_rate: {low: 3.0e-4, high: 3.0e-3, log: true}
sweep: {trials: 4, max_concurrent: 2, pruner: none}
"""


class TimedRun:
    """A run that writes the times of its start and its epochs to its folder."""

    def __init__(self, config: RunConfig, folder: Path, report: Report) -> None:
        started = time.time()
        self._run: Run = start_run(config, folder, report)
        self._file, self._steps = folder / TIMES_FILE, config.train.steps_per_epoch
        self._times: dict[str, Any] = {"pid": os.getpid(), "started": started, "ready": time.time(), "epochs": []}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def run_epoch(self) -> dict[str, float]:
        """Run and time an epoch."""
        started = time.time()
        scalars = self._run.run_epoch()
        training = self._steps / scalars["train/steps_per_second"]
        self._times["epochs"].append({"started": started, "ended": time.time(), "training": training})
        self._file.write_text(json.dumps(self._times))
        return scalars


def shares(folder: Path) -> dict[str, float]:
    """Return the rows of the table for the folder of a sweep: counts, seconds, and shares of the workers' time."""
    trials = sorted(
        (json.loads(file.read_text()) for file in folder.glob(f"trials/*/{TIMES_FILE}")), key=lambda t: t["started"]
    )
    workers: dict[int, list[Any]] = {}
    for trial in trials:
        workers.setdefault(trial["pid"], []).append(trial)
    if not trials:
        return {}
    epochs = [epoch for trial in trials for epoch in trial["epochs"]]
    training = sum(epoch["training"] for epoch in epochs)
    validation = sum(epoch["ended"] - epoch["started"] for epoch in epochs) - training
    starts = sum(trial["ready"] - trial["started"] for trial in trials)
    total = sum(own[-1]["epochs"][-1]["ended"] - own[0]["started"] for own in workers.values())
    warm_starts = [trial["ready"] - trial["started"] for own in workers.values() for trial in own[1:]]
    return {
        "trials": len(trials),
        "workers": len(workers),
        "epochs": len(epochs),
        "seconds of all workers": total,
        "training": training / total,
        "validation, sound, checkpoints": validation / total,
        "starts of runs": starts / total,
        "between": 1 - (training + validation + starts) / total,
        "start of a trial on a warm actor, s (longest)": max(warm_starts, default=float("nan")),
    }


def main() -> None:
    """Run the sweep and print, also what was finished when it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path, nargs="?", help="default: a sweep of a few minutes")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, benchmark(arguments.json) as bench:
        file = arguments.config or Path(folder, "small.yaml")
        if arguments.config is None:
            file.write_text(SMALL)
        config = load_sweep_config(file, [*arguments.overrides, f"sweep.outputs={folder}"])
        bench.doing("running the sweep")
        try:
            interrupted = run_sweep(config, name="trials", services=SweepServices(start_run=TimedRun)).interrupted
        finally:
            for name, value in shares(Path(folder, "trials")).items():
                bench.add(name, value)
        if interrupted:
            raise KeyboardInterrupt


if __name__ == "__main__":
    main()
