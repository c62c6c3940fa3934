"""The driver's hand on the study: it asks for trials, reports their epochs and tells how they ended.

Whatever the study cannot be told, because its disk is full, closes the ledger: no more trials are handed out, and
what is under way stays as it was last told, to go on another day.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, DiskError
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import sync_study
from tune.search.study import METRIC, SECONDS_PER_STEP

__all__ = ["Ending", "TrialLedger"]

_TICK = 30.0  # seconds between two notes of the time that was used
_UNFIT = 3  # trials that nodes may give back before the sweep stops
_SYNC = 1.0  # seconds after which what the study was told has to be on the disk


@dataclass(frozen=True)
class Ending:
    """How a trial ended; ``value`` is its ``val/loss`` in the study, ``error`` why it failed.

    An interrupted one has not ended: it stays running in the study and is handed out again when the sweep resumes.
    """

    state: Literal["complete", "pruned", "failed", "interrupted"]
    value: float | None = None
    error: str | None = None


@dataclass(eq=False)
class _OpenTrial:
    trial: optuna.Trial
    gpus: float
    epoch: int = 0
    best: float = math.inf
    pruned: bool = False
    interrupted: bool = False
    failure: str | None = None
    death: str | None = None  # of its last process, after which it may go on in another one
    retried: bool = False  # with more GPU memory


class TrialLedger:
    """What the driver knows of its trials beside the study, which it can always be made of again.

    Trials that the study holds as running were in flight when an earlier driver ended: they are handed out first, with
    the same number, settings and folder.

    Args:
        run: the settings that a trial's suggestions are put into.
        trials_folder: holds a folder for each trial, by number.
    """

    def __init__(
        self, study: optuna.Study, space: Space, run: RunConfig, trials_folder: Path, settings: SweepSettings
    ) -> None:
        self._study, self._space, self._run = study, space, run
        self._trials_folder, self._settings = trials_folder, settings
        trials = study.get_trials(deepcopy=False)
        self._asked = sum(trial.state != TrialState.WAITING for trial in trials)
        self._again = deque(_reopened(study, trial, settings) for trial in trials if trial.state == TrialState.RUNNING)
        self._open: dict[int, _OpenTrial] = {}
        self._used = {name: float(study.user_attrs.get(name, 0.0)) for name in ("seconds", "gpu_seconds")}
        self._ticked = self._noted = self._synced = time.monotonic()
        self._good = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        self._failed = 0
        self.ended: list[tuple[int, Ending]] = []  # by number, in the order in which they ended
        self.reopened = len(self._again)
        self.closed: str | None = None  # why no more trials are handed out
        self.fatal: DiskError | None = None  # what the study could not be told
        self.unfit: list[str] = []  # why nodes gave trials back

    def ask(self) -> dict[str, Any] | None:
        """What the next trial's actor needs: ``number``, ``folder``, ``run``, ``params``, ``gpus``; None once the
        budget is met or the ledger is closed. Settings that contradict one another make a failed trial, which counts.
        """
        while self.closed is None:
            if self._again:
                held = self._again.popleft()
            elif self._has_budget():
                asked = self._told(self._study.ask)
                if asked is None:
                    return None
                self._asked += 1
                held = _OpenTrial(asked, self._settings.gpus)
            else:
                return None
            number = held.trial.number
            self._open[number] = held
            params = self._space.suggest(held.trial)
            self._note_attribute(held, "params", params)
            try:
                run = self._space.apply(self._run, params)
            except ConfigError as error:
                self.fail(number, str(error))
                self.end(number)
                continue
            return {
                "number": number,
                "folder": str(self._trials_folder / str(number)),
                "run": run.model_dump(mode="json"),
                "params": params,
                "gpus": held.gpus,
            }
        return None

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Note one epoch of a trial, or why it stopped; returns whether it should go on."""
        held = self._open[number]
        if "interrupted" in result:
            held.interrupted = True
        elif "disk" in result:
            held.interrupted = True
            self.stop(DiskError(str(result["disk"])))
        elif "unfit" in result:
            self._give_back(held, str(result["unfit"]))
        elif "out_of_memory" in result:
            self._give_more(held, result)
        elif "error" in result:
            held.failure = str(result["error"])
        else:
            goes_on = self._report_epoch(held, result)
            if goes_on and self.closed is not None and not result.get("done"):
                held.interrupted = True  # stopped between two looks for the stop file
            return goes_on and self.closed is None
        return False

    def should_prune(self, number: int) -> bool:
        """Whether the study's pruner gives a trial up; it then ends as pruned."""
        held = self._open[number]
        held.pruned = len(self._settings.objectives) == 1 and bool(self._told(held.trial.should_prune))
        return held.pruned

    def fail(self, number: int, reason: str) -> None:
        """Let a trial end as failed, for ``reason`` in one line."""
        self._open[number].failure = " ".join(reason.split())

    def note_death(self, number: int, reason: str) -> None:
        """A trial's process died: ``reason``, in one line, is why it failed if it does not go on."""
        self._open[number].death = reason

    def give_up(self, number: int) -> None:
        """Let a trial end as failed because its process died too often."""
        self.fail(number, self._open[number].death or "its process failed")

    def end(self, number: int) -> None:
        """Tell the study how a trial ended, with what was noted of it."""
        held = self._open.pop(number)
        if held in self._again:
            return
        if held.failure is None and held.epoch == 0 and not held.interrupted:
            held.failure = f"ended before its first {METRIC}"
        if held.interrupted or self.fatal is not None:
            self._note(held, Ending("interrupted", held.best if held.epoch else None))
        elif held.failure is not None:
            failure = held.failure
            self._note_attribute(held, "error", failure)
            self._tell(held, "failed", state=TrialState.FAIL)
        elif held.pruned:
            self._tell(held, "pruned", state=TrialState.PRUNED)
        else:
            # Not the last value: the checkpoint that is kept is the best one.
            self._tell(held, "complete", self._values(held))

    def interrupt_all(self) -> int:
        """Leave every trial that still runs, or was never begun again, to another day; returns how many those are."""
        for number in list(self._open):
            self._open[number].interrupted = True
            self.end(number)
        return sum(ending.state == "interrupted" for _, ending in self.ended) + len(self._again)

    def close(self, reason: str) -> None:
        """Hand out no more trials."""
        self.closed = self.closed or reason

    def stop(self, error: DiskError) -> None:
        """Hand out no more trials, since nothing can be written any more."""
        self.fatal = self.fatal or error
        self.close(str(error))

    def tick(self) -> None:
        """Note how much time and GPU time the sweep has used, and that on the disk; call it often."""
        now = time.monotonic()
        passed, self._ticked = now - self._ticked, now
        self._used["seconds"] += passed
        self._used["gpu_seconds"] += passed * sum(held.gpus for held in self._open.values())
        if now - self._noted > _TICK:
            self.note_time()
        if now - self._synced > _SYNC:
            self.sync()

    def sync(self) -> None:
        """Wait until all that was told is on the disk."""
        self._synced = time.monotonic()
        self._told(partial(sync_study, self._study))

    def note_time(self) -> None:
        """Let the study remember the time that was used."""
        self._noted = time.monotonic()
        for name, value in self._used.items():
            self._told(partial(self._study.set_user_attr, name, value))

    @property
    def unmet(self) -> bool:
        """Whether the budget would allow another trial."""
        return self._has_budget()

    @property
    def left(self) -> int | None:
        """Trials that may still be handed out, or None: any number until the time is used up."""
        trials = self._settings.trials
        return None if trials is None else max(0, trials - self._asked) + len(self._again)

    def _has_budget(self) -> bool:
        settings = self._settings
        limits = (
            (settings.trials, self._asked),
            (settings.hours, self._used["seconds"] / 3600),
            (settings.gpu_hours, self._used["gpu_seconds"] / 3600),
        )
        return all(most is None or used < most for most, used in limits)

    def _report_epoch(self, held: _OpenTrial, result: Mapping[str, Any]) -> bool:
        epoch = int(result["epoch"])
        if epoch <= held.epoch:
            return True  # told before its process, or the driver, ended
        loss = float(result.get(METRIC, math.nan))
        if not math.isfinite(loss):
            # Optuna refuses to be told NaN and would keep the trial running for ever.
            held.failure = f"epoch {epoch}: {METRIC} is {loss if METRIC in result else 'missing'}"
            return False
        if len(self._settings.objectives) == 1:
            self._told(lambda: held.trial.report(loss, step=epoch))
        else:  # Optuna takes no intermediate values of several objectives
            self._note_attribute(held, "epochs", epoch)
        held.epoch = epoch
        if loss < held.best:
            held.best = loss
            self._note_attribute(held, "best_epoch", epoch)
            self._note_attribute(held, "metrics", _metrics(result))
        return True

    def _give_more(self, held: _OpenTrial, result: Mapping[str, Any]) -> None:
        """Out of GPU memory: once more with the share that would do, if there is one."""
        share = float(result["share"])
        if held.retried or not 0 < held.gpus < share <= 1:
            held.failure = str(result["out_of_memory"])
            return
        held.gpus, held.retried = share, True
        self._note_attribute(held, "gpus", share)
        self._again.append(held)

    def _give_back(self, held: _OpenTrial, reason: str) -> None:
        """The node that it came to cannot run trials: another one may; if that happens often, the sweep stops."""
        self._again.append(held)
        self.unfit.append(reason)
        if len(self.unfit) > _UNFIT:
            self.close(reason)

    def _values(self, held: _OpenTrial) -> float | list[float]:
        if len(self._settings.objectives) == 1:
            return held.best
        metrics = held.trial.user_attrs["metrics"]
        return [metrics[name] for name in self._settings.objectives]

    def _tell(
        self,
        held: _OpenTrial,
        ended: Literal["complete", "pruned", "failed"],
        values: float | list[float] | None = None,
        state: TrialState | None = None,
    ) -> None:
        frozen = self._told(lambda: self._study.tell(held.trial, values, state=state))
        if frozen is None:
            self._note(held, Ending("interrupted"))
            return
        # Of several objectives a frozen trial has values, but no value.
        value = held.best if ended == "complete" else None if ended == "failed" else frozen.value
        self._note(held, Ending(ended, value, held.failure))

    def _note(self, held: _OpenTrial, ending: Ending) -> None:
        """A sweep whose first trials all fail has one reason for it, which more trials would only repeat."""
        self.ended.append((held.trial.number, ending))
        self._good |= ending.state in ("complete", "pruned")
        self._failed += ending.state == "failed"
        most = self._settings.stop_after_failures
        if 0 < most <= self._failed and not self._good:
            self.close(f"the first {self._failed} trials failed")

    def _note_attribute(self, held: _OpenTrial, name: str, value: Any) -> None:
        self._told(lambda: held.trial.set_user_attr(name, value))

    def _told(self, write: Callable[[], Any]) -> Any:
        """What ``write`` returns, which writes to the study; None, with the ledger closed, if it cannot be written."""
        try:
            return write()
        except OSError as error:
            self.stop(DiskError(f"{self._trials_folder.parent}: the study cannot be written: {error.strerror}"))
            return None
        except optuna.exceptions.StorageInternalError as error:  # of a database
            reason = " ".join(str(error).split())[:200]
            self.stop(DiskError(f"sweep.storage: {self._settings.storage}: cannot be written: {reason}"))
            return None


def _reopened(study: optuna.Study, trial: FrozenTrial, settings: SweepSettings) -> _OpenTrial:
    attributes = trial.user_attrs
    gpus = float(attributes.get("gpus", settings.gpus))
    epochs = int(attributes.get("epochs", trial.last_step or 0))
    best = float(attributes.get("metrics", {}).get(METRIC, math.inf))
    reopened = optuna.Trial(study, trial._trial_id)
    return _OpenTrial(reopened, gpus, epochs, best, retried="gpus" in attributes)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of an epoch; Ray's own additions to a result have no slash in their names."""
    found = {
        name: float(value)
        for name, value in result.items()
        if "/" in name and not name.startswith("config/") and isinstance(value, int | float)
    }
    rate = found.get("train/steps_per_second", 0.0)
    return {**found, SECONDS_PER_STEP: 1 / rate} if rate else found
