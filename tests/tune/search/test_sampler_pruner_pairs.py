"""Every sampler with every pruner, through the real ledger, at the numbers of trials at a time and of epochs in use."""

import itertools
import math
import random
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
import torch
from optuna.trial import TrialState

from nuanced_core.config.settings import RunConfig
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings
from tune.search.ledger import TrialLedger
from tune.search.study import open_study

RUN = RunConfig()
TRIALS = 40
# A continuous range unless the sampler is grid, choices, a condition and a stepped range.
SEARCH: dict[str, Any] = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "encoder.pooling": ["mean", "attentive", "queries"],
    "encoder.heads": {"choices": [1, 2, 4], "when": {"encoder.pooling": ["attentive", "queries"]}},
    "encoder.width": {"low": 64, "high": 512, "step": 64},
}
SPACE = Space.parse(SEARCH, RUN, "a.yaml")
FINITE = Space.parse({**SEARCH, "train.learning_rate": [1e-4, 1e-3, 1e-2]}, RUN, "a.yaml")

SAMPLERS = get_args(SweepSettings.model_fields["sampler"].annotation)
PRUNERS = get_args(SweepSettings.model_fields["pruner"].annotation)
SLOW = pytest.mark.slow
ONE, SEVERAL = ("val/loss",), ("val/stft", "val/style")
PAIRS = [
    *((sampler, pruner, ONE) for sampler, pruner in itertools.product(SAMPLERS, PRUNERS)),
    *((sampler, "none", SEVERAL) for sampler in SAMPLERS if sampler != "cmaes"),  # the others are refused
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for the matrices of the Gaussian process
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("epochs", [pytest.param(3, marks=SLOW), 5, pytest.param(9, marks=SLOW)])
@pytest.mark.parametrize("at_a_time", [pytest.param(1, marks=SLOW), 2, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize(("sampler", "pruner", "objectives"), PAIRS, ids=[f"{s}-{p}-{len(o)}" for s, p, o in PAIRS])
def test_a_sampler_and_a_pruner_work_together(
    tmp_path: Path, sampler: Any, pruner: Any, objectives: Any, at_a_time: int, epochs: int
) -> None:
    settings = SweepSettings(trials=TRIALS, sampler=sampler, pruner=pruner, objectives=objectives)
    study = open_study(tmp_path, settings, create=True, epochs=epochs)
    if isinstance(study.sampler, optuna.samplers.GPSampler):
        # A coarser optimum of its acquisition function and fewer models, in a twentieth of the time.
        study.sampler._n_preliminary_samples, study.sampler._n_local_search, study.sampler._tol = 64, 2, 0.1
        if pruner in ("none", "patience"):  # the others leave few complete trials to learn from
            study.sampler._n_startup_trials = 30 if objectives == ONE else 36
    space = FINITE if sampler == "grid" else SPACE
    ledger = TrialLedger(study, space, RUN, tmp_path / "trials", settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run_trials(ledger, at_a_time, epochs)

    trials = study.get_trials(deepcopy=False)
    states = {trial.state for trial in trials}
    assert len(trials) == TRIALS and states <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert TrialState.COMPLETE in states
    if pruner == "none":
        assert TrialState.PRUNED not in states
    elif pruner != "patience" or epochs > 2 * settings.patience:  # fewer epochs may all be needed to lose patience
        assert TrialState.PRUNED in states
    if objectives == ONE:
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        assert all(sorted(trial.intermediate_values) == list(range(1, epochs + 1)) for trial in complete)
    settings_seen = {str(sorted(trial.user_attrs["params"].items())) for trial in trials}
    assert len(settings_seen) == TRIALS


def run_trials(ledger: TrialLedger, at_a_time: int, epochs: int) -> None:
    """Run all trials of the ledger, whose epochs take turns."""
    noise = random.Random(0)
    running: deque[tuple[int, int, dict[str, Any]]] = deque()
    while True:
        while len(running) < at_a_time and (asked := ledger.ask()) is not None:
            running.append((asked["number"], 1, asked["params"]))
        if not running:
            return
        number, epoch, params = running.popleft()
        loss = (math.log10(params["train.learning_rate"]) + 3) ** 2 + params["encoder.width"] / 512 + noise.random()
        result = {"epoch": epoch, "val/loss": loss, "val/stft": loss, "val/style": noise.random()}
        if not ledger.report(number, result) or epoch == epochs or ledger.should_prune(number):
            ledger.end(number)
        else:
            running.append((number, epoch + 1, params))
