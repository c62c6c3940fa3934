"""A sweep's trials as text: the table of ``nuanced status``, and the report at the end of a sweep."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from tune.search.results import best_trial
from tune.search.study import METRIC
from tune.show.status import STATE_NAMES, status

__all__ = ["final_lines", "short_params", "status_lines"]

# Rows of the final table, each with the group of its scalars: ``val`` of ``val/loss``.
_COMPARED = {
    "style encoder": "val",
    "mean voice": "baseline",
    "nearest voice": "nearest",
    "ridge": "ridge",
    "oracle": "oracle",
}
_TERMS = ("loss", "stft", "style")
_PEOPLE_TERMS = ("identity", "pitch")  # of runs with validation people; a higher identity is better


def status_lines(folder: Path) -> list[str]:
    """Return the status of the sweep in ``folder`` as a table of its trials.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    sweep = status(folder)
    best = sweep["best"]["number"] if sweep["best"] else None
    rows = [("trial", "state", "epochs", METRIC, "settings")]
    for trial in sweep["trials"]:
        number = f"{trial['number']}{'*' if trial['number'] == best else ''}"
        value = "" if trial["value"] is None else f"{trial['value']:.4f}"
        settings = short_params(trial["params"]) + (f"  ({trial['error']})" if trial["error"] else "")
        rows.append((number, trial["state"], str(trial["epochs"]), value, settings))
    lines = [f"{folder}: {sweep['state']}; {_counts(sweep['trials'])}", *_aligned(rows)]
    if best is not None:
        lines.append(f"* best: val/skill {_number(sweep['best']['skill'])}")
        lines += _seed_lines(sweep["best"]["seeds"])
    return [*lines, *_pareto_lines(sweep["pareto"])]


def final_lines(folder: Path, study: optuna.Study, status: Mapping[str, Any]) -> list[str]:
    """Return the report at the end of a sweep.

    It has the best trial, its settings, its losses next to those of the baselines, and the commands for curves, report
    and export, quoted for the shell.

    Args:
        folder: of the sweep.
        status: of ``study``, as ``study_status`` returns it.
    """
    counts = _counts(status["trials"])
    best = best_trial(study)
    if best is None:
        errors = [trial["error"] for trial in status["trials"] if trial["error"] is not None]
        first = f"; the first error: {errors[0]}" if errors else ""
        return [f"no trial is complete ({counts}){first}"]
    return [
        f"best trial: {best.number} ({counts})",
        *_seed_lines(status["best"]["seeds"]),
        *(f"  {name} = {_number(value)}" for name, value in best.user_attrs["params"].items()),
        "",
        *_comparison(best.user_attrs["metrics"]),
        *_pareto_lines(status["pareto"]),
        "",
        f"curves: {shlex.join(['nuanced', 'board', str(folder)])}",
        f"report: {shlex.join(['nuanced', 'report', str(folder)])}",
        f"export: {shlex.join(['nuanced', 'export', str(folder), '-o', str(Path('models') / folder.name)])}",
    ]


def _seed_lines(seeds: Mapping[str, Any] | None) -> list[str]:
    if seeds is None:
        return []
    return [f"  {METRIC} of its settings: {seeds['mean']:.4f} ± {seeds['std']:.4f} ({seeds['number']} seeds)"]


def short_params(params: Mapping[str, Any]) -> str:
    """Format settings as ``width=256 learning_rate=0.001``, without sections unless two names would be the same."""
    lasts = [name.rpartition(".")[2] for name in params]
    unique = len(set(lasts)) == len(lasts)
    return " ".join(f"{name.rpartition('.')[2] if unique else name}={_number(value)}" for name, value in params.items())


def _pareto_lines(front: Sequence[Mapping[str, Any]]) -> list[str]:
    if not front:
        return []
    names = list(front[0]["values"])
    rows: list[Sequence[str]] = [("trial", *names, "settings")]
    for trial in front:
        values = (f"{trial['values'][name]:.4f}" for name in names)
        rows.append((str(trial["number"]), *values, short_params(trial["params"])))
    return ["", "Pareto front: no other trial is better in all of these", *(f"  {line}" for line in _aligned(rows))]


def _counts(trials: Sequence[Mapping[str, Any]]) -> str:
    states = [trial["state"] for trial in trials]
    parts = [f"{states.count(state)} {state}" for state in (*STATE_NAMES.values(), "interrupted") if state in states]
    return ", ".join(parts) or "no trials"


def _comparison(metrics: Mapping[str, float]) -> list[str]:
    """Compare the losses of the best trial with those of the baselines that its metrics have."""
    terms = (*_TERMS, *(term for term in _PEOPLE_TERMS if f"val/{term}" in metrics))
    rows: list[Sequence[str]] = [("", *terms)]
    for row, group in _COMPARED.items():
        values = [metrics.get(f"{group}/{term}") for term in terms]
        if any(value is not None for value in values):
            rows.append((row, *("" if value is None else f"{value:.4f}" for value in values)))
    people = ", and people" if "val/identity" in metrics else ""
    better = "lower is better, but for identity" if people else "lower is better"
    lines = [f"held-out voices and sentences{people} ({better})", *(f"  {line}" for line in _aligned(rows))]
    if "val/noise" in metrics:
        of = "voices and people" if people else "voices"
        lines.append(f"  {METRIC} ± {metrics['val/noise']:.3f} (standard error over {of}, the same ones in all trials)")
    if "val/skill" in metrics:
        lines.append(f"  skill {metrics['val/skill']:.3f} (0 is the mean voice, 1 the oracle)")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
