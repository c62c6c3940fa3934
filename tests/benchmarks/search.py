"""The compute that samplers and pruners take until random search's best of 64 trials, on recorded learning curves.

    python -m tests.benchmarks.search [--json] [--seeds 30] [--sampler tpe …] [--pruner halving …] [--at-once 2]
    python -m tests.benchmarks.search --record SWEEP

``search_curves.csv`` holds the settings and the ``val/loss`` of each epoch of real trials: those of random search
without a pruner over the space of ``search.yaml``. Here a sampler draws as in a sweep, but its trial gets, in place of
the draw, the recorded trial nearest to it that no trial has had yet. The sampler learns from the settings and the curve
of that one, so that nothing is interpolated.

The target is the median, over many draws, of the lowest ``val/loss`` of 64 random trials. Printed for each sampler and
pruner: the epochs that all trials had trained when one was complete and as good as the target, in % of the epochs of 64
whole trials; the median, the quartiles and the mean over the seeds; and how many of the seeds reached the target, since
a pruner can stop the trials that would have. ``--record`` writes the table of a sweep whose trials are complete.
"""

import argparse
import csv
import json
import math
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from tests.benchmarks.progress import Bench, benchmark
from tune.config.dimension import Range
from tune.config.space import Space
from tune.config.sweep_config import load_sweep_config
from tune.config.sweep_settings import SweepSettings
from tune.search.distinct import DistinctDraws
from tune.search.pruners import make_pruner
from tune.search.samplers import make_sampler
from tune.search.study import open_study

CONFIG = Path(__file__).with_name("search.yaml")
CURVES = Path(__file__).with_name("search_curves.csv")
TRIALS = 64  # of random search
TARGET_DRAWS = 10_000
SAMPLERS = ("random", "qmc", "cmaes", "tpe")
SLOW_SAMPLERS = ("gp",)  # minutes for each seed
PRUNERS = ("none", "patience", "median", "hyperband", "halving")


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded trial: its settings by dotted name, and its ``val/loss`` after each epoch."""

    params: Mapping[str, Any]
    curve: tuple[float, ...]

    @property
    def value(self) -> float:
        """The value of the trial once it is complete."""
        return min(self.curve)


class NearestDraws(DistinctDraws):
    """Draws of recorded trials: of those that no trial has had, the one nearest to what the sampler draws.

    Attributes:
        left: the recorded trials that no trial has had.
        latest: the one drawn last.
    """

    def __init__(self, space: Space, settings: SweepSettings, recorded: Sequence[Recorded]) -> None:
        super().__init__(space, settings, [])
        self.left, self.latest = list(recorded), recorded[0]

    def _draw(self, draft: Any, number: int) -> dict[str, Any]:
        drawn = self._space.suggest(draft)
        self.latest = min(self.left, key=lambda trial: _distance(self._space, drawn, trial.params))
        self.left.remove(self.latest)
        return dict(self.latest.params)


def _distance(space: Space, some: Mapping[str, Any], others: Mapping[str, Any]) -> float:
    """Return the sum over all settings of their difference: 1 for another choice, and for the bounds of a range."""
    return sum(_difference(space, name, some, others) for name in {*some, *others})


def _difference(space: Space, name: str, some: Mapping[str, Any], others: Mapping[str, Any]) -> float:
    dimension = space.dimensions[name]
    if name not in some or name not in others or not isinstance(dimension, Range):
        return float(some.get(name) != others.get(name))
    scale = math.log if dimension.log else float
    return abs(scale(some[name]) - scale(others[name])) / (scale(dimension.high) - scale(dimension.low))


def search(sampler: str, pruner: str, seed: int, target: float, at_once: int) -> float:
    """Return the epochs that a search has trained when a trial is complete and as good as ``target``.

    Args:
        target: a ``val/loss``.
        at_once: number of trials that run at a time, all at the same speed.

    Returns:
        The epochs of all trials; infinity if none of the recorded trials that were drawn and not pruned is as good.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, recorded = recorded_trials()
    settings = SweepSettings.model_validate({"sampler": sampler, "pruner": pruner, "seed": seed, "trials": TRIALS})
    study = optuna.create_study(
        sampler=make_sampler(settings, 0), pruner=make_pruner(settings, len(recorded[0].curve)), direction="minimize"
    )
    draws = NearestDraws(space, settings, recorded)
    running: list[tuple[optuna.Trial, Recorded, int]] = []  # trial, its curve, epochs that it has trained
    epochs = 0
    while running or draws.left:
        while draws.left and len(running) < at_once:
            trial = study.ask()
            draws.suggest(study, trial)
            running.append((trial, draws.latest, 0))
        trial, curve_of, done = running.pop(0)
        epochs, done = epochs + 1, done + 1
        trial.report(curve_of.curve[done - 1], done)
        if done == len(curve_of.curve):
            study.tell(trial, curve_of.value)
            if curve_of.value <= target:
                return epochs
        elif trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
        else:
            running.append((trial, curve_of, done))
    return math.inf


@cache
def recorded_trials() -> tuple[Space, tuple[Recorded, ...]]:
    """Return the space and the trials of ``search_curves.csv``."""
    space = load_sweep_config(CONFIG).search
    with CURVES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [name for name in rows[0] if name.isdigit()]
    return space, tuple(
        Recorded(
            {name: _value(row[name]) for name in space.dimensions if row[name]},
            tuple(float(row[epoch]) for epoch in epochs),
        )
        for row in rows
    )


def random_best(trials: Sequence[Recorded]) -> float:
    """Return the median of the lowest value of ``TRIALS`` random trials."""
    draw, values = random.Random(0), [trial.value for trial in trials]
    return statistics.median(min(draw.sample(values, TRIALS)) for _ in range(TARGET_DRAWS))


def record(folder: Path) -> None:
    """Write the table of a sweep's complete trials."""
    space = load_sweep_config(CONFIG).search
    trials = [t for t in open_study(folder, SweepSettings()).trials if t.state == TrialState.COMPLETE]
    epochs = max(len(trial.intermediate_values) for trial in trials)
    with CURVES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*space.dimensions, *range(1, epochs + 1)])
        for trial in trials:
            params = {name: _text(value) for name, value in trial.user_attrs["params"].items()}
            curve = [f"{trial.intermediate_values[epoch]:.5f}" for epoch in range(1, epochs + 1)]
            writer.writerow([*(params.get(name, "") for name in space.dimensions), *curve])
    print(f"{CURVES.name}: {len(trials)} trials of {epochs} epochs")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    """Print the compute of each sampler with each pruner."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--sampler", action="append", choices=SAMPLERS + SLOW_SAMPLERS)
    parser.add_argument("--pruner", action="append", choices=PRUNERS)
    parser.add_argument("--at-once", type=int, default=2, help="trials that run at a time")
    parser.add_argument("--record", type=Path, metavar="SWEEP", help="write the table of this sweep's trials, no more")
    given = parser.parse_args()
    if given.record:
        return record(given.record)
    with benchmark(given.json) as bench, ProcessPoolExecutor(os.cpu_count()) as pool:
        _, recorded = recorded_trials()
        target = random_best(recorded)
        bench.add("recorded trials", len(recorded))
        bench.add("trials as good as random's best", sum(trial.value <= target for trial in recorded))
        jobs = {
            (sampler, pruner): [
                pool.submit(search, sampler, pruner, seed, target, given.at_once) for seed in range(given.seeds)
            ]
            for sampler in given.sampler or SAMPLERS
            for pruner in given.pruner or PRUNERS
        }
        try:
            for (sampler, pruner), found in jobs.items():
                bench.add(f"{sampler}, {pruner}", _row([*_results(bench, f"{sampler}, {pruner}", found)], recorded))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(bench: Bench, name: str, found: Sequence["Future[float]"]) -> Iterator[float]:
    for future in bench.each(name, found):
        yield future.result()


def _row(epochs: Sequence[float], recorded: Sequence[Recorded]) -> dict[str, float]:
    """Return the statistics of the seeds, in % of the epochs of ``TRIALS`` whole trials."""
    shares = sorted(100 * found / (TRIALS * len(recorded[0].curve)) for found in epochs)
    quarter = len(shares) / 4
    return {
        "median": shares[int(2 * quarter)],
        "lower quartile": shares[int(quarter)],
        "upper quartile": shares[int(3 * quarter)],
        "mean": statistics.fmean(shares),
        "reached": sum(share < math.inf for share in shares),
    }


if __name__ == "__main__":
    main()
