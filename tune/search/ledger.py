"""The ledger through which the driver uses the study: it asks for trials, reports epochs and ends trials.

If the study cannot be written, for example because the disk is full, the ledger closes: it hands out no more trials.
Those that run stay in the study as they were last written, so that a resumed sweep continues them.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, DiskError, one_line
from tune.config.space import SEED, Space
from tune.config.sweep_settings import SweepSettings
from tune.search.distinct import DistinctDraws, base_key
from tune.search.enqueue import enqueue_repeats, next_trial
from tune.search.journal import sync_study
from tune.search.results import Ending, OpenTrial, TrialWatcher, epoch_metrics, reopen
from tune.search.study import METRIC, REPEAT, RETRY_OF, RUN

__all__ = ["TrialLedger"]

logger = logging.getLogger(__name__)

_SAVE_TIME_INTERVAL = 30.0  # seconds between two writes of the used time
_MAX_RETURNED_TRIALS = 3  # trials that unfit nodes may return before the sweep stops
_SYNC_INTERVAL = 1.0  # seconds after which what was written to the study has to be on the disk


class TrialLedger:
    """The driver's state of its trials; it can be rebuilt from the study at any time.

    Trials that are running in the study were interrupted when an earlier driver ended. They are handed out first, with
    the same number, settings and folder.

    Args:
        run: the settings to which a trial's suggestions are applied.
        trials_folder: folder of the trials' folders, which are named by number.

    Attributes:
        ended: (number, ending) of each trial, in the order in which they ended.
        reopened: number of trials that an earlier driver left running.
        closed: why no more trials are handed out; None while they are.
        disk_error: why the study or a trial's folder could not be written, if that closed the ledger.
        unfit: the reasons for which nodes returned trials.
        watcher: is told of trials while they run.
    """

    def __init__(
        self, study: optuna.Study, space: Space, run: RunConfig, trials_folder: Path, settings: SweepSettings
    ) -> None:
        self._study, self._space, self._run = study, space, run
        self._trials_folder, self._settings = trials_folder, settings
        self.closed: str | None = None
        self.disk_error: DiskError | None = None
        self._waiting = 0  # enqueued trials; below 0 if others enqueue some meanwhile
        self._run_key = base_key(run)
        self._first_run_key = self._first_key()
        self._add_repeats()
        trials = study.get_trials(deepcopy=False)
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        self._waiting = sum(bool(trial.system_attrs.get("fixed_params")) for trial in waiting)
        self._retries = deque(trial._trial_id for trial in waiting if RETRY_OF in trial.user_attrs)
        again = {trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs}
        self._asked = sum(trial.state != TrialState.WAITING and trial.number not in again for trial in trials)
        same_run = [t for t in trials if t.user_attrs.get(RUN, self._first_run_key) == self._run_key]
        self._draws = DistinctDraws(space, settings, same_run)
        # Handed out before any new trial.
        self._pending = deque(reopen(study, trial, settings) for trial in trials if trial.state == TrialState.RUNNING)
        self._open: dict[int, OpenTrial] = {}
        self._used = {name: float(study.user_attrs.get(name, 0.0)) for name in ("seconds", "gpu_seconds")}
        self._last_tick = self._last_save = self._last_sync = time.monotonic()
        self._has_success = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        self._failures = 0
        self.ended: list[tuple[int, Ending]] = []
        self.reopened = len(self._pending)
        self.unfit: list[str] = []
        self.watcher = TrialWatcher()

    def ask(self) -> dict[str, Any] | None:
        """Return the next trial, or None if budget or search space are used up or the ledger is closed.

        Its settings differ from those of all trials so far, unless they were enqueued or are repeated with another
        seed. A trial whose settings contradict each other fails here and counts towards the budget.

        Returns:
            ``number``, ``folder``, ``run``, ``params`` and ``gpus`` of the trial.
        """
        while self.closed is None:
            if self._pending:
                open_trial = self._pending.popleft()
            elif self.has_budget:
                asked = self._write(partial(next_trial, self._study, self._retries))
                if asked is None:
                    return None
                self._asked += 1
                self._waiting -= bool(asked._fixed_params)
                open_trial = OpenTrial(asked, self._settings.gpus)
            else:
                return None
            number = open_trial.trial.number
            self._open[number], open_trial.has_process = open_trial, False
            try:
                params = self._suggest(open_trial)
                self.watcher.started(number, params)
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
                "gpus": open_trial.gpus,
            }
        return None

    def _suggest(self, open_trial: OpenTrial) -> dict[str, Any]:
        """Return a trial's settings, and store them unless it has them already.

        Raises:
            ConfigError: an enqueued value is no longer allowed.
        """
        trial = open_trial.trial
        known = trial.user_attrs.get("params")
        if known is not None:
            return dict(known)
        params = self._draws.suggest(self._study, trial)
        if self._settings.repeats > 1 or REPEAT in trial.user_attrs:
            params[SEED] = self._run.train.seed + trial.user_attrs.get(REPEAT, 0)
        self._set_attribute(open_trial, "params", params)
        if self._run_key != self._first_run_key:
            self._set_attribute(open_trial, RUN, self._run_key)
        return params

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Record a trial's result, one epoch or the reason why it stopped; return whether the trial should continue.

        Args:
            result: the scalars of the ``epoch``, or one of ``interrupted``, ``disk``, ``unfit``, ``out_of_memory``
                (with ``share``, the share of a GPU that would be enough) and ``error``.
        """
        open_trial = self._open[number]
        if "interrupted" in result:
            open_trial.interrupted = True
        elif "disk" in result:
            open_trial.interrupted = True
            self.stop(DiskError(str(result["disk"])))
        elif "unfit" in result:
            self._return_trial(open_trial, str(result["unfit"]))
        elif "out_of_memory" in result:
            self._retry_with_more_memory(open_trial, result)
        elif "error" in result:
            open_trial.failure = str(result["error"])
        else:
            continues = self._report_epoch(open_trial, result)
            if continues and self.closed is not None and not result.get("done"):
                open_trial.interrupted = True  # stopped between two checks for the stop file
            return continues and self.closed is None
        return False

    def should_prune(self, number: int) -> bool:
        """Return whether the study's pruner stops a trial, which then ends as pruned.

        A repeat is not stopped: the mean of a setting's seeds is of complete trials.
        """
        open_trial = self._open[number]
        may_stop = len(self._settings.objectives) == 1 and REPEAT not in open_trial.trial.user_attrs
        open_trial.pruned = may_stop and bool(self._write(open_trial.trial.should_prune))
        return open_trial.pruned

    def set_process(self, number: int, has_process: bool) -> None:
        """Record whether a trial has a process, and so uses the GPUs that it was given."""
        if number in self._open:
            self._open[number].has_process = has_process

    def fail(self, number: int, reason: str) -> None:
        """Mark a trial to end as failed; ``reason`` is reduced to one line."""
        self._open[number].failure = " ".join(reason.split())

    def record_process_death(self, number: int, reason: str) -> None:
        """Record in one line why a trial's process died, for the case that the trial is not restarted."""
        self._open[number].process_death = reason

    def fail_after_process_death(self, number: int) -> None:
        """Mark a trial to end as failed because its process died too often."""
        self.fail(number, self._open[number].process_death or "its process failed")

    def end(self, number: int) -> None:
        """End a trial in the study, in the state that its recorded results lead to."""
        open_trial = self._open.pop(number)
        if open_trial in self._pending:
            return
        if open_trial.failure is None and open_trial.epoch == 0 and not open_trial.interrupted:
            open_trial.failure = f"ended before its first {METRIC}"
        if open_trial.interrupted or self.disk_error is not None:
            self._record_ending(open_trial, Ending("interrupted", open_trial.best if open_trial.epoch else None))
        elif open_trial.failure is not None:
            failure = open_trial.failure
            self._set_attribute(open_trial, "error", failure)
            self._tell_study(open_trial, "failed", state=TrialState.FAIL)
        elif open_trial.pruned:
            self._tell_study(open_trial, "pruned", state=TrialState.PRUNED)
        else:
            # The best value instead of the last one, because the best checkpoint is kept.
            self._tell_study(open_trial, "complete", self._objective_values(open_trial))
            if self._settings.repeats > 1:
                self._add_repeats(open_trial.trial.number)

    def interrupt_all(self) -> int:
        """Leave all unfinished trials to a resumed sweep, also those not yet handed out again; return their number."""
        for number in list(self._open):
            self._open[number].interrupted = True
            self.end(number)
        return sum(ending.state == "interrupted" for _, ending in self.ended) + len(self._pending)

    def close(self, reason: str) -> None:
        """Hand out no more trials."""
        self.closed = self.closed or reason

    def stop(self, error: DiskError) -> None:
        """Hand out no more trials, because ``error`` prevents writing."""
        self.disk_error = self.disk_error or error
        self.close(str(error))

    def tick(self) -> None:
        """Update the used time and GPU time, and save and sync them at intervals; to be called often."""
        now = time.monotonic()
        passed, self._last_tick = now - self._last_tick, now
        self._used["seconds"] += passed
        self._used["gpu_seconds"] += passed * sum(t.gpus for t in self._open.values() if t.has_process)
        if now - self._last_save > _SAVE_TIME_INTERVAL:
            self.save_used_time()
        if now - self._last_sync > _SYNC_INTERVAL:
            self.sync()

    def sync(self) -> None:
        """Wait until everything in the study is on the disk."""
        self._last_sync = time.monotonic()
        self._write(partial(sync_study, self._study))

    def save_used_time(self) -> None:
        """Write the used time to the study."""
        self._last_save = time.monotonic()
        for name, value in self._used.items():
            self._write(partial(self._study.set_user_attr, name, value))

    @property
    def has_budget(self) -> bool:
        """Whether the budget allows another new trial."""
        if self.used_up:
            return False
        settings = self._settings
        limits = (
            (settings.trials, self._asked),
            (settings.hours, self._used["seconds"] / 3600),
            (settings.gpu_hours, self._used["gpu_seconds"] / 3600),
        )
        return all(most is None or used < most for most, used in limits)

    @property
    def used_up(self) -> bool:
        """Whether every setting of a finite search space has been tried, and none is enqueued."""
        return self._draws.used_up and self._waiting <= 0

    @property
    def tried(self) -> tuple[int, int | None]:
        """How many settings have been tried, and how many there are; None if they are too many to be counted."""
        return self._draws.tried, self._draws.size

    def _first_key(self) -> str:
        """Return the key of the run that the study began with; trials of another run have theirs as an attribute."""
        if RUN not in self._study.user_attrs:
            self._write(partial(self._study.set_user_attr, RUN, self._run_key))
        return str(self._study.user_attrs.get(RUN, self._run_key))

    def _add_repeats(self, number: int | None = None) -> None:
        """Enqueue what the complete trial ``number``, or each one in the study, lacks of ``sweep.repeats`` seeds."""
        if self._settings.repeats > 1:
            repeats = self._settings.repeats
            added = self._write(lambda: enqueue_repeats(self._study, self._space, self._run_key, repeats, number))
            self._waiting += added or 0

    def _report_epoch(self, open_trial: OpenTrial, result: Mapping[str, Any]) -> bool:
        epoch = int(result["epoch"])
        if epoch <= open_trial.epoch:
            return True  # reported before its process, or the driver, ended
        loss = float(result.get(METRIC, math.nan))
        if not math.isfinite(loss):
            # Optuna rejects NaN and would keep the trial running for ever.
            open_trial.failure = f"epoch {epoch}: {METRIC} is {loss if METRIC in result else 'missing'}"
            return False
        is_better, metrics = loss < open_trial.best, epoch_metrics(result)
        if is_better:  # stored before its epoch, which is reported again if a driver dies between the two
            open_trial.best = loss
            self._set_attribute(open_trial, "best_epoch", epoch)
            self._set_attribute(open_trial, "metrics", metrics)
        if len(self._settings.objectives) == 1:
            self._write(lambda: open_trial.trial.report(loss, step=epoch))
        else:  # Optuna takes no intermediate values with several objectives
            self._set_attribute(open_trial, "epochs", epoch)
        open_trial.epoch = epoch
        self.watcher.reported(open_trial.trial.number)
        if is_better:
            self.watcher.improved(open_trial.trial.number, epoch, metrics)
        return True

    def _retry_with_more_memory(self, open_trial: OpenTrial, result: Mapping[str, Any]) -> None:
        """Hand out a trial once more after it ran out of GPU memory, if a larger share of a GPU would be enough."""
        share = float(result["share"])
        if open_trial.retried or not 0 < open_trial.gpus < share <= 1:
            open_trial.failure = str(result["out_of_memory"])
            return
        reason = str(result["out_of_memory"]).partition(";")[0]
        logger.warning("trial %d: %s; it starts again with %.3g of a GPU", open_trial.trial.number, reason, share)
        open_trial.gpus, open_trial.retried = share, True
        self._set_attribute(open_trial, "gpus", share)
        self._pending.append(open_trial)

    def _return_trial(self, open_trial: OpenTrial, reason: str) -> None:
        """Hand out a trial again that an unfit node returned; if that happens often, the ledger closes."""
        self._pending.append(open_trial)
        self.unfit.append(reason)
        if len(self.unfit) > _MAX_RETURNED_TRIALS:
            self.close(reason)

    def _objective_values(self, open_trial: OpenTrial) -> float | list[float]:
        if len(self._settings.objectives) == 1:
            return open_trial.best
        metrics = open_trial.trial.user_attrs["metrics"]
        return [metrics[name] for name in self._settings.objectives]

    def _tell_study(
        self,
        open_trial: OpenTrial,
        ended: Literal["complete", "pruned", "failed"],
        values: float | list[float] | None = None,
        state: TrialState | None = None,
    ) -> None:
        frozen = self._write(lambda: self._study.tell(open_trial.trial, values, state=state))
        if frozen is None:
            self._record_ending(open_trial, Ending("interrupted"))
            return
        # With several objectives a frozen trial has values, but no value.
        value = open_trial.best if ended == "complete" else None if ended == "failed" else frozen.value
        self._record_ending(open_trial, Ending(ended, value, open_trial.failure))

    def _record_ending(self, open_trial: OpenTrial, ending: Ending) -> None:
        """Record an ending.

        If the first ``sweep.stop_after_failures`` trials all failed, the ledger closes, because more trials would fail
        for the same reason.
        """
        self.ended.append((open_trial.trial.number, ending))
        self._has_success |= ending.state in ("complete", "pruned")
        self._failures += ending.state == "failed"
        most = self._settings.stop_after_failures
        if 0 < most <= self._failures and not self._has_success:
            self.close(f"the first {self._failures} trials failed")

    def _set_attribute(self, open_trial: OpenTrial, name: str, value: Any) -> None:
        self._write(lambda: open_trial.trial.set_user_attr(name, value))

    def _write(self, write: Callable[[], Any]) -> Any:
        """Call ``write``, which writes to the study, and return its result; if it fails, close and return None."""
        try:
            return write()
        except OSError as error:
            self.stop(DiskError(f"{self._trials_folder.parent}: the study cannot be written: {error.strerror}"))
            return None
        except optuna.exceptions.StorageInternalError as error:  # of a database
            reason = one_line(error)
            self.stop(DiskError(f"sweep.storage: {self._settings.storage}: cannot be written: {reason}"))
            return None
