"""The study as Ray's searcher and scheduler: Ray executes what Optuna decides."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from tune.cluster.shared_storage import SharedFolder
from tune.search.ledger import TrialLedger
from tune.trial.reports import ERROR_FILE, unpack_scalars

__all__ = ["StudyScheduler", "StudySearcher"]

_EXIT_DETAIL = "Worker exit detail:"  # in what Ray tells of a process that was killed
_GUESSES = " Some common causes"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class StudySearcher(Searcher):  # type: ignore[misc]
    """Hands the study's trials out to Ray until the budget is met.

    Args:
        room: how many trials may run at one time, now. A trial that waits would have been chosen knowing less.
    """

    def __init__(self, ledger: TrialLedger, room: Callable[[], int]) -> None:
        # No metric: Ray would end the sweep at the first result without it, that of a trial that failed.
        super().__init__()
        self._ledger, self._room = ledger, room
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of Ray's trial ``trial_id``; None while there is no room, or one may still be handed out
        again; ``FINISHED``.
        """
        if self._numbers and len(self._numbers) >= self._room():
            return None
        asked = self._ledger.ask()
        if asked is None:
            # A trial that runs may run out of memory and be handed out again with more.
            return None if self._numbers and self._ledger.closed is None else str(Searcher.FINISHED)
        self._numbers[trial_id] = asked["number"]
        # Ray keeps what it is given for as long as the sweep lasts: the trial's process makes the run of its settings.
        run = asked.pop("run")
        return {**asked, "epochs": run["train"]["epochs"]}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """End the study's trial; Ray does not show the last result to the scheduler, so it is noted here."""
        number = self._numbers.pop(trial_id)
        if error:
            self._ledger.give_up(number)
        elif result:
            self._ledger.report(number, unpack_scalars(result))
        self._ledger.end(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Shows each epoch to the study and stops the trials that its pruner gives up.

    Args:
        sweep: the folder in which trials' folders lie, or to which they are copied.
    """

    def __init__(self, ledger: TrialLedger, sweep: SharedFolder) -> None:
        super().__init__()
        self._ledger, self._sweep = ledger, sweep

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """``STOP`` for a trial that is pruned or whose loss is not finite."""
        number = trial.config["number"]
        if not self._ledger.report(number, unpack_scalars(result)) or self._ledger.should_prune(number):
            return str(FIFOScheduler.STOP)
        return str(FIFOScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note why the trial's process gave up: the trial goes on in another, or the searcher is told next."""
        self._ledger.note_death(trial.config["number"], self._reason(trial))

    def _reason(self, trial: Any) -> str:
        """The first line that the trial itself left, else what Ray knows of the end of its process."""
        left = self._sweep.read(f"trials/{trial.config['number']}/{ERROR_FILE}")
        return left.partition("\n")[0] if left else _end_of_process(trial)


def _end_of_process(trial: Any) -> str:
    told = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
    _, detailed, detail = told.partition(_EXIT_DETAIL)
    if detailed:
        return f"its process died: {detail.strip().splitlines()[0].partition(_GUESSES)[0]}"
    # A traceback, whose last line is the exception.
    lines = told.strip().splitlines()
    return f"its process failed: {_COLOUR.sub('', lines[-1])}" if lines else "its process failed"
