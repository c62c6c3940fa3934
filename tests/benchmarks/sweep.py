"""How little a sweep's driver costs, beside Ray's own OptunaSearch and ASHAScheduler.

    python -m tests.benchmarks.sweep [--json] [--sizes 100,1000,5000] [--seconds 0.5] [--part efficiency|scale]

The objective is a toy whose epochs sleep a known time. ``ours`` is ``tune.sweep.driver.run_sweep``, whole: the study in a
journal file, a folder with TensorBoard curves for each trial. ``ray`` is Ray Tune as its users have it: OptunaSearch
(the study in memory) with the same TPE settings but for groups, ASHAScheduler with the same rungs, a storage path with
Ray's default loggers (TensorBoard, JSON, CSV) and checkpoints of the experiment's state; ``bare`` is the same without
loggers, so that nothing is left of its trials' curves. All search the same four settings with two workers of one CPU
each, reuse their actors and print nothing. Each system and size runs in a fresh process, one after another.

*efficiency*: 100 trials of up to 5 epochs that sleep 0.5 s. Ideal is the sum of what all epochs slept, by two workers.
``efficiency`` divides that by the time from the first epoch's start to the last one's end, so that the start of Ray
and of the first actors does not count; ``with_startup`` by the time from the call, with Ray up, to its return.
``busy`` is what each worker slept between its own first epoch's start and its last one's end: without the workers'
unequal beginnings and the end, where one has nothing left to do.

*scale*: trials of up to 3 epochs that sleep nothing, so that the driver is what they wait for. By system and size:
wall seconds from the first epoch's start to the last one's end; those by trial and by result (an epoch told to the
driver); milliseconds by result of the driver's CPU, and in the searcher's and scheduler's callbacks: in all, in the
first and in the last hundred trials; growth of the driver's memory (RSS) from the 50th trial's end to the last one's.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune as ray_tune
from rich.console import Console
from rich.table import Table

from nuanced_core.config.settings import RunConfig
from tests.tune.toy import prepare
from tune.cluster.machines import ThisMachine
from tune.config.sweep_config import load_sweep
from tune.trial.protocol import Report
from tune.trial.reports import unpack_scalars

WORKERS, SETTLED, WINDOW = 2, 50, 100
REDUCTION, STARTUP = 3, 10  # as tune/study.py has them
SPACE = """
search:
  train.learning_rate: {low: 1.0e-5, high: 1.0e-1, log: true}
  encoder.width: {low: 32, high: 512}
  train.batch_size: {low: 4, high: 64}
  encoder.pooling: [mean, mean_std, max]
sweep: {sampler: tpe, pruner: halving}
"""
GIVE_UP = 4 * 3600  # seconds that one system and size may take


def epoch_of(rate: float, width: int, batch: int, pooling: str, epoch: int, sleep: float) -> dict[str, float]:
    """Sleep, and the scalars of an epoch, with when it began and ended."""
    started = time.time()
    if sleep:
        time.sleep(sleep)
    distance = (
        (math.log10(rate) + 3) ** 2 + (width / 256 - 1) ** 2 + (batch / 32 - 1) ** 2 + (pooling != "mean_std") / 2
    )
    return {"val/loss": distance + 1 / epoch, "toy/started": started, "toy/ended": time.time()}


class ToyRun:
    """A run of ours."""

    def __init__(self, config: RunConfig, folder: Path, report: Report, *, sleep: float) -> None:
        self.config, self.sleep = config, sleep
        self.epoch, self.scalars = 0, dict[str, float]()

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.train.epochs

    def run_epoch(self) -> dict[str, float]:
        self.epoch += 1
        encoder, train = self.config.encoder, self.config.train
        tried = train.learning_rate, encoder.width, train.batch_size, encoder.pooling
        self.scalars = epoch_of(*tried, self.epoch, self.sleep)
        return self.scalars

    def close(self) -> None: ...


class ToyTrainable(ray_tune.Trainable):  # type: ignore[misc]
    """The same for Ray's own."""

    def setup(self, config: dict[str, Any], *, epochs: int, sleep: float) -> None:
        self._trial, self._epochs, self._sleep, self._epoch = config, epochs, sleep, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial, self._epoch = new_config, 0
        return True

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        scalars = epoch_of(**self._trial, epoch=self._epoch, sleep=self._sleep)
        return {**scalars, "done": self._epoch >= self._epochs}


def resident() -> float:
    """MB that this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Probe(ray_tune.Callback):  # type: ignore[misc]
    """Watches a driver from within: when epochs ran, how long its callbacks took, how much memory it holds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.results, self.inside, self.cpu = 0, 0.0, 0.0
        self.slept = 0.0
        self.spans: dict[int, tuple[float, float]] = {}  # by process, its first epoch's start and its last one's end
        self.rows = array("d", [0.0, 0.0, resident()])  # of each trial's end: results, seconds inside, memory

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, *_: Any, result: Mapping[str, Any], **info: Any) -> None:
        self.results += 1
        self.cpu = self.cpu or time.process_time()
        told = unpack_scalars(result)
        started, ended = told["toy/started"], told["toy/ended"]
        self.slept += ended - started
        self.spans[result["pid"]] = self.spans.get(result["pid"], (started, ended))[0], ended

    def watch(self, owner: type, *methods: str, counts: str = "") -> None:
        """Time these methods of a class; where one named ``counts`` returns, a trial has ended."""
        for method in methods:
            setattr(owner, method, self._timed(getattr(owner, method), method == counts))

    def _timed(self, function: Any, ends: bool) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside += time.perf_counter() - started
                if ends:
                    self._note_end()

        return timed

    def _note_end(self) -> None:
        self.rows.extend((self.results, self.inside, resident()))
        ended = self.ended
        if ended % 250 == 0:
            print(f"{self.name}: {ended} trials, {time.time() - self.first:.0f} s", file=sys.stderr, flush=True)

    @property
    def first(self) -> float:
        return min(start for start, _ in self.spans.values())

    @property
    def ended(self) -> int:
        return len(self.rows) // 3 - 1

    def between(self, start: int, end: int) -> float:
        """Milliseconds in the callbacks, by result, from one trial's end to another's."""
        (results, inside, _), (more, longer, _) = (self.rows[3 * row : 3 * row + 3] for row in (start, end))
        return 1000 * (longer - inside) / max(1.0, more - results)

    def summary(self, whole: float) -> dict[str, float]:
        wall, ended = max(end for _, end in self.spans.values()) - self.first, self.ended
        settled = min(SETTLED, ended // 2)
        grown = self.rows[3 * ended + 2] - self.rows[3 * settled + 2]
        return {
            "trials": ended,
            "results": self.results,
            "wall_s": wall,
            "call_s": whole,
            "efficiency": self.slept / WORKERS / wall,
            "busy": self.slept / sum(end - start for start, end in self.spans.values()),
            "with_startup": self.slept / WORKERS / whole,
            "ms_per_trial": 1000 * wall / ended,
            "ms_per_result": 1000 * wall / self.results,
            "cpu_ms_per_result": 1000 * (time.process_time() - self.cpu) / self.results,
            "callbacks_ms_per_result": self.between(0, ended),
            "callbacks_ms_first": self.between(0, min(WINDOW, ended)),
            "callbacks_ms_last": self.between(max(0, ended - WINDOW), ended),
            "rss_growth_mb": grown,
            "rss_growth_mb_per_1000": 1000 * grown / (ended - settled),
        }


def ours(probe: Probe, trials: int, epochs: int, sleep: float, folder: Path) -> None:
    """A sweep of ours."""
    from tune.show.progress import Progress
    from tune.sweep import record as outputs
    from tune.sweep.driver import SweepServices, run_sweep
    from tune.trial.ray_search import StudyScheduler, StudySearcher

    probe.watch(StudySearcher, "suggest", "on_trial_complete", counts="on_trial_complete")
    probe.watch(StudyScheduler, "on_trial_result")
    shown = Progress.on_trial_result

    def on_trial_result(self: Progress, *args: Any, **info: Any) -> None:
        probe.on_trial_result(**info)
        shown(self, *args, **info)

    setattr(Progress, "on_trial_result", on_trial_result)  # noqa: B010 (a method, for mypy)
    file = folder / "toy.yaml"
    file.write_text(SPACE)
    sweep = {"trials": trials, "max_concurrent": WORKERS, "outputs": str(folder)}
    config = load_sweep(file, [f"train.epochs={epochs}", *(f"sweep.{name}={value}" for name, value in sweep.items())])
    outputs.BYTES_PER_TRIAL = 0  # these trials need no disk
    services = SweepServices(partial(ToyRun, sleep=sleep), prepare, say=lambda line: None)
    result = run_sweep(config, name="ours", services=services)
    if any(trial["state"] == "failed" for trial in result.status["trials"]):
        raise SystemExit("a trial failed")


def rays(probe: Probe, trials: int, epochs: int, sleep: float, folder: Path) -> None:
    """The same search by what Ray brings itself."""
    import optuna
    from optuna.samplers import TPESampler
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    probe.watch(OptunaSearch, "suggest", "on_trial_result", "on_trial_complete", counts="on_trial_complete")
    probe.watch(ASHAScheduler, "on_trial_add", "on_trial_result", "on_trial_complete")
    sampler = TPESampler(multivariate=True, constant_liar=True, n_startup_trials=STARTUP, seed=0)
    goal = {"metric": "val/loss", "mode": "min"}
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
            search_alg=OptunaSearch(sampler=sampler, **goal),
            scheduler=ASHAScheduler(max_t=epochs, grace_period=1, reduction_factor=REDUCTION, **goal),
            num_samples=trials,
            max_concurrent_trials=WORKERS,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            callbacks=[probe],
            verbose=0,
            # A class saves itself at its end by default, which a toy has no use for; ours does not do it either.
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()
    if grid.errors:
        raise grid.errors[0]


SYSTEMS = {"ours": ours, "ray": rays, "bare": rays}


def measure(system: str, trials: int, epochs: int, sleep: float, folder: Path) -> dict[str, float]:
    """One system at one size, in this process, which ought to be a fresh one."""
    if system != "ours":  # Ray's own defaults, which ThisMachine would change
        os.environ |= {"TUNE_GLOBAL_CHECKPOINT_S": "auto", "TUNE_MAX_PENDING_TRIALS_PG": "auto"}
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0" if system == "ray" else "1"
    with ThisMachine().started():
        probe = Probe(f"{system} {trials}")
        started = time.perf_counter()
        SYSTEMS[system](probe, trials, epochs, sleep, folder)
        return probe.summary(time.perf_counter() - started)


def in_fresh_process(**what: Any) -> dict[str, float]:
    """``measure`` in a process of its own, of which nothing is left when this returns."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        out, told = Path(name) / "measured.json", json.dumps({**what, "folder": name})
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.sweep", "--child", told],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = child.wait(GIVE_UP)
        finally:
            with suppress(ProcessLookupError):  # Ray's processes too, if it did not end them
                os.killpg(child.pid, signal.SIGKILL)
        if code or not out.is_file():
            raise SystemExit(f"{what}: ended with {code}")
        measured: dict[str, float] = json.loads(out.read_text())
    print(f"{what['system']} {what['trials']}: {measured['wall_s']:.1f} s", file=sys.stderr, flush=True)
    return measured


def verdicts(parts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The figures that the sweep is held to."""
    epochs = parts.get("efficiency", {}).items()
    found = {f"{column} ({name})": row[column] for name, row in epochs for column in ("efficiency", "busy")}
    scale = parts.get("scale", {})
    sizes = sorted({int(row["trials"]) for row in scale.values()})
    for system in SYSTEMS if sizes else ():
        few, many = (scale[f"{system} {size}"] for size in (sizes[0], sizes[-1]))
        for column in ("ms_per_result", "callbacks_ms_per_result"):
            found[f"{column} at {sizes[-1]} / at {sizes[0]} ({system})"] = many[column] / few[column]
    for size in sizes:
        for other in ("ray", "bare"):
            found[f"wall ours / {other} at {size}"] = (
                scale[f"ours {size}"]["wall_s"] / scale[f"{other} {size}"]["wall_s"]
            )
    return found


def table(part: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    found = Table(title=part)
    for column in ("", *rows):
        found.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in next(iter(rows.values())):
        found.add_row(name, *(f"{row[name]:.{0 if float(row[name]).is_integer() else 3}f}" for row in rows.values()))
    return found


def main() -> None:
    """Measure all in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=["efficiency", "scale"], help="that one alone")
    parser.add_argument("--sizes", default="100,1000,5000", help="trials, for scale")
    parser.add_argument("--seconds", type=float, default=0.5, help="that an epoch sleeps, for efficiency")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what = json.loads(arguments.child)
        folder = Path(what.pop("folder"))
        (folder / "measured.json").write_text(json.dumps(measure(folder=folder, **what)))
        return
    parts: dict[str, dict[str, dict[str, float]]] = {}
    sizes = [int(size) for size in arguments.sizes.split(",")]
    for part, plans in {
        "efficiency": [{"trials": 100, "epochs": 5, "sleep": arguments.seconds}],
        "scale": [{"trials": size, "epochs": 3, "sleep": 0.0} for size in sizes],
    }.items():
        if arguments.part in (None, part):
            parts[part] = {
                f"{system} {plan['trials']}": in_fresh_process(system=system, **plan)
                for plan in plans
                for system in SYSTEMS
            }
    held = verdicts(parts)
    if arguments.json:
        print(json.dumps({**parts, "verdicts": held}, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part, rows in parts.items():
        console.print(table(part, rows))
    for name, value in held.items():
        console.print(f"{name:48} {value:.3f}", highlight=False)


if __name__ == "__main__":
    main()
