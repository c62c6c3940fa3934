"""What a sweep's folder tells about its trials: as data, as a table, and as the report at its end."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune.study import METRIC, read_study

__all__ = [
    "best_trial",
    "complete_trials",
    "ended_trials",
    "final_lines",
    "mark",
    "ranked",
    "short_params",
    "status",
    "status_lines",
]

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
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
    (``complete``, ``pruned``, ``failed``, ``running``, ``interrupted``: in flight when the driver ended, ``waiting``:
    enqueued), ``value`` (the lowest ``val/loss`` of a complete trial, the last of one that is not, null before there is
    one or if it failed), ``epochs`` (finished ones), ``params`` (by dotted setting) and ``error`` (one line, or null).
    ``best`` has ``number``, ``value``, ``skill`` and ``params`` of the complete trial of the lowest value; it is null
    while no trial is complete. ``pareto`` is empty with one objective; with several it has, of each trial that no other
    is better than in all, ``number``, ``values`` (by objective) and ``params``, and ``best`` is that of the lowest
    ``val/loss`` among all.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    return _status(read_study(folder))


def _status(study: optuna.Study) -> dict[str, Any]:
    state = _sweep_state(study)
    best = best_trial(study)
    names = study.user_attrs.get("objectives", [METRIC])
    return {
        "state": state,
        "trials": [_trial_status(trial, state) for trial in study.get_trials(deepcopy=False)],
        "best": best
        and {
            "number": best.number,
            "value": _value(best),
            "skill": best.user_attrs["metrics"].get("val/skill"),
            "params": best.user_attrs["params"],
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
    if best is not None:
        lines.append(f"* best: val/skill {_number(told['best']['skill'])}")
    return [*lines, *_pareto_lines(told["pareto"])]


def final_lines(folder: Path) -> list[str]:
    """The report at a sweep's end: the best trial, its settings, its numbers beside the baselines, what next.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    study = read_study(folder)
    trials = study.get_trials(deepcopy=False)
    told = _status(study)
    counts = _counts(told["trials"])
    best = best_trial(study)
    if best is None:
        errors = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
        first = f"; the first error: {errors[0]}" if errors else ""
        return [f"no trial is complete ({counts}){first}"]
    return [
        f"best trial: {best.number} ({counts})",
        *(f"  {name} = {_number(value)}" for name, value in best.user_attrs["params"].items()),
        "",
        *_comparison(best.user_attrs["metrics"]),
        *_pareto_lines(told["pareto"]),
        "",
        f"curves: tensorboard --logdir {folder / 'trials'}",
        f"export: nuanced export {folder} -o {Path('models') / folder.name}",
    ]


def short_params(params: Mapping[str, Any]) -> str:
    """``width=256 learning_rate=0.001``: without sections, where that leaves no two names the same."""
    lasts = [name.rpartition(".")[2] for name in params]
    unique = len(set(lasts)) == len(lasts)
    return " ".join(f"{name.rpartition('.')[2] if unique else name}={_number(value)}" for name, value in params.items())


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of the lowest ``val/loss``, or None while none is complete."""
    return next(iter(ranked(study)), None)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, that of the lowest ``val/loss`` first."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: _value(trial) or 0.0)


def complete_trials(study: optuna.Study) -> list[tuple[float, int]]:
    """``val/loss`` and number of each complete trial, the best first."""
    return [(_value(trial) or 0.0, trial.number) for trial in ranked(study)]


def ended_trials(study: optuna.Study) -> list[int]:
    """The numbers of the trials that have ended, however."""
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _value(trial: FrozenTrial) -> float | None:
    """The ``val/loss``, whatever the objectives are."""
    if trial.values is not None and len(trial.values) > 1:
        value: float | None = trial.user_attrs.get("metrics", {}).get(METRIC)
        return value
    return trial.value


def _trial_status(trial: FrozenTrial, sweep_state: str) -> dict[str, Any]:
    last = trial.last_step
    value = _value(trial)
    if value is None and last is not None and trial.state == TrialState.RUNNING:
        value = trial.intermediate_values[last]
    in_flight = trial.state == TrialState.RUNNING and sweep_state != "running"
    return {
        "number": trial.number,
        "state": "interrupted" if in_flight else _STATES[trial.state],
        "value": value,
        "epochs": trial.user_attrs.get("epochs", last or 0),
        "params": trial.user_attrs.get("params", trial.params),
        "error": trial.user_attrs.get("error"),
    }


def _pareto_lines(front: Sequence[Mapping[str, Any]]) -> list[str]:
    if not front:
        return []
    names = list(front[0]["values"])
    rows: list[Sequence[str]] = [("trial", *names, "settings")]
    for trial in front:
        values = (f"{trial['values'][name]:.4f}" for name in names)
        rows.append((str(trial["number"]), *values, short_params(trial["params"])))
    return ["", "Pareto front: no other trial is better in all of these", *(f"  {line}" for line in _aligned(rows))]


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
    parts = [f"{states.count(state)} {state}" for state in (*_STATES.values(), "interrupted") if state in states]
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
