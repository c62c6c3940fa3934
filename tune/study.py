"""The Optuna study of a sweep, and the ledger by which its driver asks, reports and tells.

The study is the only truth about trials: their parameters, each epoch's ``val/loss`` (the intermediate
values), how they ended, and in their user attributes ``params`` (the settings tried, by dotted name),
``metrics`` and ``best_epoch`` (of the epoch of lowest ``val/loss``, whose checkpoint is kept) and ``error``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from nuanced_core.config import RunConfig
from nuanced_core.errors import ConfigError
from tune.config import SweepSettings
from tune.space import Space

__all__ = ["METRIC", "STUDY_FILE", "Ending", "TrialLedger", "open_study"]

METRIC = "val/loss"
STUDY_FILE = "study.journal"

# Rungs at 1, 3, 9, … epochs; a third of the trials goes on from each.
_HALVING_REDUCTION = 3
_MEDIAN_STARTUP_TRIALS = 4
_MEDIAN_WARMUP_EPOCHS = 1
_TPE_STARTUP_TRIALS = 10


def open_study(folder: Path, settings: SweepSettings, *, create: bool = False) -> optuna.Study:
    """The study in a sweep's ``folder``, with the sampler and pruner of ``settings``.

    Raises:
        ConfigError: there is no study, and ``create`` is false.
    """
    path = folder / STUDY_FILE
    if not create and not path.is_file():
        raise ConfigError(f"{folder}: not the folder of a sweep (it holds no {STUDY_FILE})")
    storage = JournalStorage(JournalFileBackend(str(path)))
    sampler, pruner = _sampler(settings), _pruner(settings)
    if create:
        return optuna.create_study(
            study_name=folder.name, storage=storage, sampler=sampler, pruner=pruner, direction="minimize"
        )
    # The folder may have been renamed since; a sweep's storage holds one study, whatever its name.
    names = optuna.get_all_study_names(storage)
    if not names:
        raise ConfigError(f"{path}: holds no study; the sweep was stopped before it began")
    return optuna.load_study(study_name=names[0], storage=storage, sampler=sampler, pruner=pruner)


def _sampler(settings: SweepSettings) -> optuna.samplers.BaseSampler:
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=settings.seed)
    return optuna.samplers.TPESampler(
        # TPE's own default would make a sweep of ten trials a random search.
        n_startup_trials=min(_TPE_STARTUP_TRIALS, math.ceil(settings.trials / 3)),
        # Conditional settings make groups of their own; without this they would be drawn one by one.
        multivariate=True,
        group=True,
        constant_liar=True,
        seed=settings.seed,
    )


def _pruner(settings: SweepSettings) -> optuna.pruners.BasePruner:
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(_MEDIAN_STARTUP_TRIALS, _MEDIAN_WARMUP_EPOCHS)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_HALVING_REDUCTION)


@dataclass(frozen=True)
class Ending:
    """How a trial ended; ``value`` is its ``val/loss`` in the study, ``error`` why it failed."""

    state: Literal["complete", "pruned", "failed"]
    value: float | None = None
    error: str | None = None


@dataclass
class _OpenTrial:
    trial: optuna.Trial
    epoch: int = 0
    best: float = math.inf
    pruned: bool = False
    failure: str | None = None


class TrialLedger:
    """The driver's hand on the study: asks it for trials, reports their epochs, tells how they ended."""

    def __init__(self, study: optuna.Study, space: Space, run: RunConfig, trials_folder: Path, budget: int) -> None:
        self._study = study
        self._space = space
        self._run = run
        self._trials_folder = trials_folder
        self._budget = budget
        self._asked = len(study.get_trials(deepcopy=False))
        self._open: dict[int, _OpenTrial] = {}
        self.endings: dict[int, Ending] = {}

    def ask(self) -> dict[str, Any] | None:
        """What the next trial's actor needs: ``number``, ``folder``, ``run``, ``params``; None once the
        budget is met. Settings that contradict one another make a failed trial, which counts.
        """
        while self._asked < self._budget:
            trial = self._study.ask()
            self._asked += 1
            self._open[trial.number] = _OpenTrial(trial)
            params = self._space.suggest(trial)
            trial.set_user_attr("params", params)
            try:
                run = self._space.apply(self._run, params)
            except ConfigError as error:
                self.fail(trial.number, str(error))
                self.end(trial.number)
                continue
            return {
                "number": trial.number,
                "folder": str(self._trials_folder / str(trial.number)),
                "run": run.model_dump(mode="json"),
                "params": params,
            }
        return None

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Note one epoch of a trial; returns whether the trial should go on."""
        held = self._open[number]
        if "error" in result:
            held.failure = str(result["error"])
            return False
        epoch = int(result["epoch"])
        if epoch <= held.epoch:
            return True
        loss = float(result.get(METRIC, math.nan))
        if not math.isfinite(loss):
            # Optuna refuses to be told NaN and would keep the trial running for ever.
            held.failure = f"epoch {epoch}: {METRIC} is {loss if METRIC in result else 'missing'}"
            return False
        held.trial.report(loss, step=epoch)
        held.epoch = epoch
        if loss < held.best:
            held.best = loss
            held.trial.set_user_attr("best_epoch", epoch)
            held.trial.set_user_attr("metrics", _metrics(result))
        return True

    def should_prune(self, number: int) -> bool:
        """Whether the study's pruner gives a trial up; it then ends as pruned."""
        held = self._open[number]
        held.pruned = held.trial.should_prune()
        return held.pruned

    def fail(self, number: int, reason: str) -> None:
        """Let a trial end as failed, for ``reason`` in one line."""
        self._open[number].failure = " ".join(reason.split())

    def end(self, number: int) -> None:
        """Tell the study how a trial ended, with what was noted of it."""
        held = self._open.pop(number)
        if held.failure is None and held.epoch == 0:
            held.failure = f"ended before its first {METRIC}"
        if held.failure is not None:
            held.trial.set_user_attr("error", held.failure)
            self._study.tell(held.trial, state=TrialState.FAIL)
            self.endings[number] = Ending("failed", error=held.failure)
        elif held.pruned:
            told = self._study.tell(held.trial, state=TrialState.PRUNED)
            self.endings[number] = Ending("pruned", told.value)
        else:
            # Not the last value: the checkpoint that is kept is the best one.
            self._study.tell(held.trial, held.best)
            self.endings[number] = Ending("complete", held.best)

    def end_all(self, reason: str) -> int:
        """Let every trial that still runs end as failed; returns how many did."""
        numbers = list(self._open)
        for number in numbers:
            self.fail(number, reason)
            self.end(number)
        return len(numbers)

    @property
    def left(self) -> int:
        """Trials of the budget that were never asked for."""
        return max(0, self._budget - self._asked)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of an epoch; Ray's own additions to a result have no slash in their names."""
    return {
        name: float(value)
        for name, value in result.items()
        if "/" in name and not name.startswith("config/") and isinstance(value, int | float)
    }
