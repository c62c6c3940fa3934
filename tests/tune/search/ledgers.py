"""Ledgers of small studies, shared by the tests of the search and of what is shown of a sweep."""

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from nuanced_core.config.settings import RunConfig
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings
from tune.search.ledger import TrialLedger
from tune.search.results import Ending
from tune.search.study import open_study

SEARCH: dict[str, Any] = {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def ledger(
    folder: Path, budget: int | None = 3, search: Any = SEARCH, pruner: str = "none", **settings: Any
) -> TrialLedger:
    """Create or reopen the study in ``folder`` and return a ledger of it."""
    sweep = SweepSettings(trials=budget, sampler="random", pruner=pruner, **settings)  # type: ignore[arg-type]
    study = open_study(folder, sweep, create=True)
    return TrialLedger(study, Space.parse(search, RunConfig(), "a.yaml"), RunConfig(), folder / "trials", sweep)


def endings(book: TrialLedger) -> dict[int, Ending]:
    return dict(book.ended)


def stored_trials(folder: Path) -> list[FrozenTrial]:
    """Return the trials that another process reads from the folder."""
    return open_study(folder, SweepSettings()).trials


def result(epoch: int, loss: float) -> dict[str, Any]:
    """Return one epoch's result as Ray passes it to the ledger."""
    return {"epoch": epoch, "val/loss": loss, "val/skill": -loss, "config/train/epochs": 3, "pid": 1}
