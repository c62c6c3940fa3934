"""The status of a sweep and its trials as plain data, read from its study."""

import os
import socket
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune.config.secrets import masked
from tune.search.results import SeedMean, best_trial, seed_mean, trial_loss
from tune.search.study import METRIC, REPEAT_OF, RETRY_OF, read_study

__all__ = ["STATE_NAMES", "mark", "status", "study_status"]

STATE_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def mark(study: optuna.Study, state: str) -> None:
    """Record in the study that this process drives the sweep and that its state is now ``state``."""
    study.set_user_attr("driver", {"host": socket.gethostname(), "pid": os.getpid()})
    study.set_user_attr("state", state)


def status(folder: Path) -> dict[str, Any]:
    """Return the status of the sweep in ``folder``, as ``study_status`` describes it.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    return study_status(read_study(folder))


def study_status(study: optuna.Study) -> dict[str, Any]:
    """Return the status of a sweep as plain data that can be written as JSON.

    - ``state``: ``running`` (its driver is alive, or on another machine), ``finished`` (the budget is met) or
      ``interrupted`` (stopped before that, or the driver died).
    - ``trials``: for each trial ``number``; ``state``: ``complete``, ``pruned``, ``failed``, ``running``,
      ``interrupted`` (in flight when the driver ended) or ``waiting`` (enqueued); ``value``: the lowest ``val/loss`` of
      a complete trial, the last one of any other, None before there is one or if the trial failed; ``epochs``: finished
      ones; ``params`` by dotted setting; ``error``: one line, or None; ``retry_of``, ``repeat_of``: the number of the
      failed trial that it replaces, or whose settings it has with another seed, or None.
    - ``best``: ``number``, ``value``, ``skill`` and ``params`` of the complete trial with the lowest ``val/loss``, and
      ``seeds``: None, or the ``number``, ``mean`` and ``std`` of the seeds that its settings were trained with
      (``sweep.repeats``; the settings with the lowest mean are best); None while no trial is complete.
    - ``pareto``: empty with one objective; with several objectives ``number``, ``values`` (by objective) and ``params``
      of each trial that no other trial is better than in all of them.
    """
    state = _sweep_state(study)
    best = best_trial(study)
    names = study.user_attrs.get("objectives", [METRIC])
    return {
        "state": state,
        "trials": [_trial_status(trial, state) for trial in study.get_trials(deepcopy=False)],
        "best": best
        and {
            "number": best.number,
            "value": trial_loss(best),
            "skill": best.user_attrs["metrics"].get("val/skill"),
            "params": best.user_attrs["params"],
            "seeds": _seeds(seed_mean(study, best)),
        },
        "pareto": [
            {
                "number": trial.number,
                "values": dict(zip(names, trial.values, strict=True)),
                "params": trial.user_attrs["params"],
            }
            for trial in (study.best_trials if len(study.directions) > 1 else [])
        ],
    }


def _seeds(mean: SeedMean | None) -> dict[str, Any] | None:
    return None if mean is None else {"number": len(mean.trials), "mean": mean.mean, "std": mean.std}


def _trial_status(trial: FrozenTrial, sweep_state: str) -> dict[str, Any]:
    last = trial.last_step
    value = trial_loss(trial)
    if value is None and last is not None and trial.state == TrialState.RUNNING:
        value = trial.intermediate_values[last]
    error = trial.user_attrs.get("error")
    in_flight = trial.state == TrialState.RUNNING and sweep_state != "running"
    return {
        "number": trial.number,
        "state": "interrupted" if in_flight else STATE_NAMES[trial.state],
        "value": value,
        "epochs": trial.user_attrs.get("epochs", last or 0),
        "params": trial.user_attrs.get("params", trial.params),
        RETRY_OF: trial.user_attrs.get(RETRY_OF),
        REPEAT_OF: trial.user_attrs.get(REPEAT_OF),
        "error": None if error is None else masked(str(error)),
    }


def _sweep_state(study: optuna.Study) -> str:
    state = str(study.user_attrs.get("state", "interrupted"))
    driver = study.user_attrs.get("driver", {})
    if state == "running" and driver.get("host") == socket.gethostname() and not _is_alive(driver["pid"]):
        return "interrupted"
    return state


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
