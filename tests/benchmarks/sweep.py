"""Cost of a sweep's driver, compared with Ray's own OptunaSearch and ASHAScheduler.

    python -m tests.benchmarks.sweep [--json] [--part efficiency|scale] [--trials 30] [--seconds 0.5]
        [--sizes 100,300]

The objective is a toy whose epochs sleep for a known time. Systems:

- ``ours``: all of ``tune.sweep.driver.run_sweep``, with the study in a journal file, and a folder with TensorBoard
  curves for each trial.
- ``ray``: Ray Tune as it is commonly used: OptunaSearch (the study in memory) with the same TPE settings except for
  groups, ASHAScheduler with the same rungs, a storage path with Ray's default loggers (TensorBoard, JSON, CSV) and
  checkpoints of the experiment's state.
- ``bare``: the same without loggers, so that it keeps no curves of its trials.

All search the same four settings with two workers of one CPU each, reuse their actors and print nothing. Each system
and size runs in a new process, one after another.

*efficiency*: trials (``--trials``) of up to 5 epochs that sleep 0.5 s. The ideal time is the sum of all sleep divided
by two workers. ``efficiency`` is the ideal time divided by the time from the start of the first epoch to the end of the
last one, which excludes the start of Ray and of the first actors. ``with_startup`` divides by the time of the whole
call, with Ray running before. ``busy`` is the share of sleep in each worker's time from the start of its own first
epoch to the end of its last one, which excludes the workers' unequal starts and the end, when one worker has nothing
left to do.

*scale*: trials of up to 3 epochs that do not sleep, so that they wait for the driver. By system and size: wall time in
seconds from the start of the first epoch to the end of the last one; the same per trial and per result (an epoch that
is reported to the driver); milliseconds per result of the driver's CPU time, and of its searcher's and scheduler's
callbacks: of all trials, of the first hundred and of the last hundred; growth of the driver's memory (RSS) from the end
of the 50th trial to the end of the last one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune as ray_tune
from rich.console import Console
from rich.table import Table

from tests.benchmarks.driver_probe import WORKERS, DriverProbe
from tests.benchmarks.progress import benchmark
from tests.benchmarks.sweep_toy import SPACE, ToyRun, ToyTrainable
from tests.tune.toy import prepare
from tune.cluster.machines import ThisMachine
from tune.config.sweep_config import load_sweep_config

# As in tune/search: halving's reduction factor, and trials that are sampled at random.
REDUCTION, STARTUP_TRIALS = 3, 10
FIRST_COLUMNS = ("wall_s", "efficiency", "ms_per_result")  # of a row that is printed at once; the table has all
OUTPUT_FILE = "measured.json"  # of a process that measures one system at one size
TIMEOUT = 4 * 3600  # seconds, of one system and size


def run_ours(probe: DriverProbe, trials: int, epochs: int, sleep: float, folder: Path) -> None:
    """Search with this project's sweep."""
    from tune.cluster import disk
    from tune.show.progress import Progress
    from tune.sweep.driver import SweepServices, run_sweep
    from tune.trial.ray_search import StudyScheduler, StudySearcher

    probe.time_methods(StudySearcher, "suggest", "on_trial_complete", ends_trial="on_trial_complete")
    probe.time_methods(StudyScheduler, "on_trial_result")
    show_result = Progress.on_trial_result

    def on_trial_result(self: Progress, *args: Any, **info: Any) -> None:
        probe.on_trial_result(**info)
        show_result(self, *args, **info)

    setattr(Progress, "on_trial_result", on_trial_result)  # noqa: B010 (a method, for mypy)
    file = folder / "toy.yaml"
    file.write_text(f"{SPACE}sweep: {{sampler: tpe, pruner: halving}}\n")
    settings = {"trials": trials, "max_concurrent": WORKERS, "outputs": str(folder)}
    overrides = [f"train.epochs={epochs}", *(f"sweep.{name}={value}" for name, value in settings.items())]
    disk.BYTES_PER_TRIAL = 0  # these trials write no checkpoints
    services = SweepServices(start_run=partial(ToyRun, sleep=sleep), prepare=prepare)
    result = run_sweep(load_sweep_config(file, overrides), name="ours", services=services)
    if any(trial["state"] == "failed" for trial in result.status["trials"]):
        raise SystemExit("a trial failed")


def run_ray(probe: DriverProbe, trials: int, epochs: int, sleep: float, folder: Path) -> None:
    """Run the same search with Ray's own searcher and scheduler."""
    import optuna
    from optuna.samplers import TPESampler
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    probe.time_methods(OptunaSearch, "suggest", "on_trial_result", "on_trial_complete", ends_trial="on_trial_complete")
    probe.time_methods(ASHAScheduler, "on_trial_add", "on_trial_result", "on_trial_complete")
    sampler = TPESampler(multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS, seed=0)
    objective = {"metric": "val/loss", "mode": "min"}
    trainable = ray_tune.with_parameters(ToyTrainable, epochs=epochs, sleep=sleep)
    grid = ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"CPU": 1}),
        param_space={
            "rate": ray_tune.loguniform(1e-5, 1e-1),
            "width": ray_tune.randint(32, 513),
            "batch": ray_tune.randint(4, 65),
            "pooling": ray_tune.choice(["mean", "mean_std", "max"]),
        },
        tune_config=ray_tune.TuneConfig(
            search_alg=OptunaSearch(sampler=sampler, **objective),
            scheduler=ASHAScheduler(max_t=epochs, grace_period=1, reduction_factor=REDUCTION, **objective),
            num_samples=trials,
            max_concurrent_trials=WORKERS,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            callbacks=[probe],
            verbose=0,
            # By default a class is saved at its end; a toy has nothing to save, and ours does not do it either.
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()
    if grid.errors:
        raise grid.errors[0]


SYSTEMS = {"ours": run_ours, "ray": run_ray, "bare": run_ray}


def measure(system: str, trials: int, epochs: int, sleep: float, folder: Path) -> dict[str, float]:
    """Measure one system at one size in this process, which should be a new one."""
    if system != "ours":  # Ray's defaults, which ThisMachine would change
        os.environ |= {"TUNE_GLOBAL_CHECKPOINT_S": "auto", "TUNE_MAX_PENDING_TRIALS_PG": "auto"}
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0" if system == "ray" else "1"
    with ThisMachine().started():
        probe = DriverProbe(f"{system} {trials}")
        started = time.perf_counter()
        SYSTEMS[system](probe, trials, epochs, sleep, folder)
        return probe.summary(time.perf_counter() - started)


def measure_in_new_process(**job: Any) -> dict[str, float]:
    """Call ``measure`` in a new process, whose child processes are killed before this returns."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output, argument = Path(folder) / OUTPUT_FILE, json.dumps({**job, "folder": folder})
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.sweep", "--child", argument],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = child.wait(TIMEOUT)
        finally:
            with suppress(ProcessLookupError):  # Ray's processes too, if it did not end them
                os.killpg(child.pid, signal.SIGKILL)
        if code or not output.is_file():
            raise SystemExit(f"{job}: ended with {code}")
        measured: dict[str, float] = json.loads(output.read_text())
    return measured


def verdicts(parts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Return the figures that have targets."""
    efficiency = parts.get("efficiency", {}).items()
    figures = {f"{column} ({name})": row[column] for name, row in efficiency for column in ("efficiency", "busy")}
    scale = parts.get("scale", {})
    sizes = sorted({int(row["trials"]) for row in scale.values()})
    finished = [system for system in SYSTEMS if all(f"{system} {size}" in scale for size in sizes)]
    for system in finished:
        small, large = (scale[f"{system} {size}"] for size in (sizes[0], sizes[-1]))
        for column in ("ms_per_result", "callbacks_ms_per_result"):
            figures[f"{column} at {sizes[-1]} / at {sizes[0]} ({system})"] = large[column] / small[column]
    for size in sizes:
        for other in ("ray", "bare"):
            if not {f"ours {size}", f"{other} {size}"} <= scale.keys():
                continue
            ratio = scale[f"ours {size}"]["wall_s"] / scale[f"{other} {size}"]["wall_s"]
            figures[f"wall ours / {other} at {size}"] = ratio
    return figures


def table(part: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table with a column for each system and size."""
    shown = Table(title=part)
    for column in ("", *rows):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in next(iter(rows.values())):
        shown.add_row(name, *(f"{row[name]:.{0 if float(row[name]).is_integer() else 3}f}" for row in rows.values()))
    return shown


def main() -> None:
    """Measure all systems one after another, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=["efficiency", "scale"], help="measure only this part")
    parser.add_argument("--sizes", default="100,300", help="numbers of trials, for scale")
    parser.add_argument("--trials", type=int, default=30, help="for efficiency")
    parser.add_argument("--seconds", type=float, default=0.5, help="sleep of an epoch, for efficiency")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job = json.loads(arguments.child)
        folder = Path(job.pop("folder"))
        (folder / OUTPUT_FILE).write_text(json.dumps(measure(folder=folder, **job)))
        return
    jobs = {
        "efficiency": [{"trials": arguments.trials, "epochs": 5, "sleep": arguments.seconds}],
        "scale": [{"trials": int(size), "epochs": 3, "sleep": 0.0} for size in arguments.sizes.split(",")],
    }
    parts: dict[str, dict[str, dict[str, float]]] = {}
    with benchmark(arguments.json) as bench:
        bench.summary = lambda: _tables(parts)
        for part in [part for part in jobs if arguments.part in (None, part)]:
            for job in jobs[part]:
                for system in SYSTEMS:
                    name = f"{system} {job['trials']}"
                    bench.doing(f"{part}: {name} trials")
                    measured = measure_in_new_process(system=system, **job)
                    parts.setdefault(part, {})[name] = measured
                    columns = measured if arguments.json else FIRST_COLUMNS
                    bench.add(f"{part}, {name}", {column: measured[column] for column in columns})
        for name, value in verdicts(parts).items() if arguments.json else ():
            bench.add(name, value)


def _tables(parts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Return the lines of the tables and of the figures that have targets."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part, rows in parts.items():
        with console.capture() as capture:
            console.print(table(part, rows))
        yield capture.get().rstrip()
    for name, value in verdicts(parts).items():
        yield f"{name:48} {value:.3f}"


if __name__ == "__main__":
    main()
