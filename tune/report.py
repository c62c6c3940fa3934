"""What a sweep's folder tells about its trials: as data, as a table, and as the report at its end."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune.config import SweepSettings
from tune.study import METRIC, open_study

__all__ = ["best_trial", "final_lines", "mark", "short_params", "status", "status_lines"]

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}
# Rows of the final table and the scalars' names that they stand in, before the slash.
_COMPARED = {"style encoder": "val", "mean voice": "baseline", "oracle": "oracle"}
_TERMS = ("loss", "stft", "style")


def mark(study: optuna.Study, state: str) -> None:
    """Note in the study that this process drives it and that the sweep is now ``state``."""
    study.set_user_attr("driver", {"host": socket.gethostname(), "pid": os.getpid()})
    study.set_user_attr("state", state)


def status(folder: Path) -> dict[str, Any]:
    """A sweep as plain data, for scripts.

    ``state`` is ``running`` (its driver is alive, or on another machine), ``finished`` (the budget is met) or
    ``interrupted`` (stopped before that, or the driver died). Each of ``trials`` has ``number``, ``state``
    (``complete``, ``pruned``, ``failed``, ``running``), ``value`` (the lowest ``val/loss`` of a complete
    trial, the last of a pruned or running one, null before there is one or if it failed), ``epochs``
    (finished ones), ``params`` (by dotted setting) and ``error`` (one line, or null). ``best`` has
    ``number``, ``value``, ``skill`` and ``params`` of the complete trial of the lowest value; it is null
    while no trial is complete.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    study = open_study(folder, SweepSettings())
    trials = study.get_trials(deepcopy=False)
    best = best_trial(trials)
    return {
        "state": _sweep_state(study),
        "trials": [_trial_status(trial) for trial in trials],
        "best": best
        and {
            "number": best.number,
            "value": best.value,
            "skill": best.user_attrs["metrics"].get("val/skill"),
            "params": best.user_attrs["params"],
        },
    }


def status_lines(folder: Path) -> list[str]:
    """``status`` as a table for people.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    told = status(folder)
    best = told["best"]["number"] if told["best"] else None
    rows = [("trial", "state", "epochs", METRIC, "settings")]
    for trial in told["trials"]:
        number = f"{trial['number']}{'*' if trial['number'] == best else ''}"
        value = "" if trial["value"] is None else f"{trial['value']:.4f}"
        settings = short_params(trial["params"]) + (f"  ({trial['error']})" if trial["error"] else "")
        rows.append((number, trial["state"], str(trial["epochs"]), value, settings))
    lines = [f"{folder}: {told['state']}; {_counts(told['trials'])}", *_aligned(rows)]
    return lines if best is None else [*lines, f"* best: val/skill {_number(told['best']['skill'])}"]


def final_lines(folder: Path) -> list[str]:
    """The report at a sweep's end: the best trial, its settings, its numbers beside the baselines, what next.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    trials = open_study(folder, SweepSettings()).get_trials(deepcopy=False)
    counts = _counts([_trial_status(trial) for trial in trials])
    best = best_trial(trials)
    if best is None:
        errors = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
        first = f"; the first error: {errors[0]}" if errors else ""
        return [f"no trial is complete ({counts}){first}"]
    return [
        f"best trial: {best.number} ({counts})",
        *(f"  {name} = {_number(value)}" for name, value in best.user_attrs["params"].items()),
        "",
        *_comparison(best.user_attrs["metrics"]),
        "",
        f"curves: tensorboard --logdir {folder / 'trials'}",
        f"export: nuanced export {folder} -o {Path('models') / folder.name}",
    ]


def short_params(params: Mapping[str, Any]) -> str:
    """``width=256 learning_rate=0.001``: without sections, where that leaves no two names the same."""
    lasts = [name.rpartition(".")[2] for name in params]
    unique = len(set(lasts)) == len(lasts)
    return " ".join(f"{name.rpartition('.')[2] if unique else name}={_number(value)}" for name, value in params.items())


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial of the lowest ``val/loss``, or None while none is complete."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return min(complete, key=lambda trial: trial.value or 0.0, default=None)


def _trial_status(trial: FrozenTrial) -> dict[str, Any]:
    last = trial.last_step
    value = trial.value
    if value is None and last is not None and trial.state == TrialState.RUNNING:
        value = trial.intermediate_values[last]
    return {
        "number": trial.number,
        "state": _STATES[trial.state],
        "value": value,
        "epochs": last or 0,
        "params": trial.user_attrs.get("params", trial.params),
        "error": trial.user_attrs.get("error"),
    }


def _sweep_state(study: optuna.Study) -> str:
    state = str(study.user_attrs.get("state", "interrupted"))
    driver = study.user_attrs.get("driver", {})
    if state == "running" and driver.get("host") == socket.gethostname() and not _alive(driver["pid"]):
        return "interrupted"
    return state


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _counts(trials: Sequence[Mapping[str, Any]]) -> str:
    states = [trial["state"] for trial in trials]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(_STATES.values()) if state in states]
    return ", ".join(parts) or "no trials"


def _comparison(metrics: Mapping[str, float]) -> list[str]:
    rows: list[Sequence[str]] = [("", *_TERMS)]
    for row, group in _COMPARED.items():
        values = [metrics.get(f"{group}/{term}") for term in _TERMS]
        if any(value is not None for value in values):
            rows.append((row, *("" if value is None else f"{value:.4f}" for value in values)))
    lines = ["held-out voices and sentences (lower is better)", *(f"  {line}" for line in _aligned(rows))]
    if "val/skill" in metrics:
        lines.append(f"  skill {metrics['val/skill']:.3f} (0 is the mean voice, 1 the oracle)")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
