"""What a sweep works with, whatever its settings are: machines, training, and a console for the live table."""

from dataclasses import dataclass, field

from rich.console import Console

from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import start_run
from tune.cluster.machines import Machines, ThisMachine
from tune.cluster.node_preparation import Prepare
from tune.trial.protocol import StartRun
from tune.trial.resources import Measure, measure_peak

__all__ = ["SweepServices"]


@dataclass(frozen=True)
class SweepServices:
    """The machines and functions that a sweep uses; tests replace them.

    Args:
        machines: where trials run.
        console: if it is a terminal, it shows a live table of the trials, which then are not logged line by line.
        prepare: fetches the models and renders the data of some runs, before anything is written.
        start_run: starts a trial's run in the trial's process.
        measure: measures the GPU memory of a run, for ``sweep.gpus_per_trial: auto``.
    """

    machines: Machines = field(default_factory=ThisMachine)
    console: Console | None = None
    prepare: Prepare = prepare
    start_run: StartRun = start_run
    measure: Measure = measure_peak
