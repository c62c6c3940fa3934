"""Ray's searcher and scheduler on top of the study: Ray executes what Optuna decides."""

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

_EXIT_DETAIL = "Worker exit detail:"  # in Ray's message about a killed process
_GENERIC_CAUSES = " Some common causes"
_ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class StudySearcher(Searcher):  # type: ignore[misc]
    """Gives the study's trials to Ray until the budget is met.

    Args:
        capacity: returns how many trials may run at a time now. No more are suggested: a trial that waits would have
            been chosen with less information.
    """

    def __init__(self, ledger: TrialLedger, capacity: Callable[[], int]) -> None:
        # No metric: Ray would end the sweep at the first result without it, which is that of a failed trial.
        super().__init__()
        self._ledger, self._capacity = ledger, capacity
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of Ray's trial ``trial_id``, None while no trial may start, or ``FINISHED``."""
        if self._numbers and len(self._numbers) >= self._capacity():
            return None
        asked = self._ledger.ask()
        if asked is None:
            # A running trial may run out of memory and be retried with more.
            return None if self._numbers and self._ledger.closed is None else str(Searcher.FINISHED)
        self._numbers[trial_id] = asked["number"]
        # Ray keeps every configuration until the sweep ends, so the trial's process builds the run's settings itself.
        run = asked.pop("run")
        return {**asked, "epochs": run["train"]["epochs"]}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """End the study's trial. Ray does not pass the last result to the scheduler, so it is reported here."""
        number = self._numbers.pop(trial_id)
        if error:
            self._ledger.fail_after_process_death(number)
        elif result:
            _report(self._ledger, number, result)
        self._ledger.end(number)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is already on disk."""


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Reports each epoch to the study and stops the trials that its pruner prunes.

    Args:
        storage: the folder that holds the trials' folders or their copies.
    """

    def __init__(self, ledger: TrialLedger, storage: SharedFolder) -> None:
        super().__init__()
        self._ledger, self._storage = ledger, storage

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Return ``STOP`` for a trial that is pruned or whose loss is not finite, else ``CONTINUE``."""
        number = trial.config["number"]
        if not _report(self._ledger, number, result) or self._ledger.should_prune(number):
            return str(FIFOScheduler.STOP)
        return str(FIFOScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note why the trial's process failed: Ray continues the trial in another one, or completes it next."""
        self._ledger.record_process_death(trial.config["number"], self._reason(trial))

    def _reason(self, trial: Any) -> str:
        """The first line of the trial's error file, else Ray's message about the end of its process."""
        left = self._storage.read(f"trials/{trial.config['number']}/{ERROR_FILE}")
        return left.partition("\n")[0] if left else _end_of_process(trial)


def _report(ledger: TrialLedger, number: int, result: Mapping[str, Any]) -> bool:
    """Pass a result on to the ledger, and its warnings to the ledger's watcher; return whether the trial continues."""
    for line in result.get("warnings", ()):
        ledger.watcher.warned(line)
    return ledger.report(number, unpack_scalars(result))


def _end_of_process(trial: Any) -> str:
    message = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
    _, found, detail = message.partition(_EXIT_DETAIL)
    if found:
        return f"its process died: {detail.strip().splitlines()[0].partition(_GENERIC_CAUSES)[0]}"
    # The message is a traceback, whose last line is the exception.
    lines = message.strip().splitlines()
    return f"its process failed: {_ANSI_COLOR.sub('', lines[-1])}" if lines else "its process failed"
