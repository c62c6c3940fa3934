"""What the sections of the report say, as plain data: no HTML."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from nuanced_core.config.yaml_files import yaml_text
from nuanced_core.errors import NuancedError
from tune.analysis.loaded import LoadedSweep
from tune.analysis.tables import TERMS
from tune.config.secrets import masked
from tune.search.study import METRIC, REPEAT_OF, RETRY_OF

__all__ = [
    "baselines_table",
    "best_settings",
    "failures",
    "provenance",
    "summary",
    "time_table",
    "trials_table",
]

_SHOWN_METRICS = ("val/skill", "val/stft", "val/style", "val/identity", "val/pitch")
_TITLES = {
    "loss": "loss",
    "stft": "STFT",
    "style": "style",
    "identity": "identity (people)",
    "pitch": "pitch (people)",
}


def summary(sweep: LoadedSweep) -> list[tuple[str, str]]:
    """Return what was searched and found, as five pairs of a title and a line."""
    return [
        ("State", _state_line(sweep)),
        ("Searched", _searched_line(sweep)),
        ("Found", _found_line(sweep)),
        ("What matters", _importance_line(sweep)),
        ("Spent", _spent_line(sweep)),
    ]


def _state_line(sweep: LoadedSweep) -> str:
    states = [trial["state"] for trial in sweep.status["trials"]]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    budget = None if sweep.config is None else sweep.config.sweep.trials
    of = "" if budget is None else f" of a budget of {budget}"
    many = "trial" if len(states) == 1 else "trials"
    trials = f"{len(states)} {many}{of}: {', '.join(counts)}" if states else f"no trial has begun yet{of}"
    return f"{sweep.status['state']}; {trials}."


def _searched_line(sweep: LoadedSweep) -> str:
    minimised = " and ".join(sweep.objectives)
    if sweep.config is None:
        return f"The settings file is missing; minimised is {minimised}."
    search, settings = sweep.config.search, sweep.config.sweep
    conditional = sum(bool(dimension.when) for dimension in search.dimensions.values())
    note = f", {conditional} of them conditional" if conditional else ""
    many = "settings" if len(search.names) > 1 else "setting"
    pruner = "nothing stops a trial early" if settings.pruner == "none" else f"pruner {settings.pruner}"
    return f"{len(search.names)} {many}{note}, by sampler {settings.sampler}, {pruner}; minimised is {minimised}."


def _found_line(sweep: LoadedSweep) -> str:
    if sweep.best is None:
        return "No trial is complete yet." if sweep.frozen else "Nothing yet."
    metrics = sweep.best.metrics
    others = [
        f"{title} {metrics[name]:.3f}"
        for name, title in (
            *(("baseline/loss", "mean voice"), ("nearest/loss", "nearest voice")),
            *(("ridge/loss", "ridge regression"), ("oracle/loss", "oracle")),
        )
        if name in metrics
    ]
    compared = f" ({', '.join(others)})" if others else ""
    skill = (
        f"; skill {metrics['val/skill']:.3f}, where 0 is the mean voice and 1 the oracle"
        if ("val/skill" in metrics)
        else ""
    )
    front = len(sweep.status["pareto"])
    pareto = f" {front} trials are on the Pareto front." if front else ""
    return f"Best is trial {sweep.best.number} with {METRIC} {sweep.best.value:.4f}{compared}{skill}.{pareto}"


def _importance_line(sweep: LoadedSweep) -> str:
    if sweep.importance is None:
        return "Too few complete trials to tell which settings matter."
    first = [f"{name} ({share:.0%})" for name, share in list(sweep.importance.shares.items())[:3]]
    unsure = "; unsure, of so few trials" if sweep.importance.is_unsure else ""
    return f"By PED-ANOVA: {', '.join(first)}{unsure}."


def _spent_line(sweep: LoadedSweep) -> str:
    attributes = sweep.study.user_attrs
    hours = float(attributes.get("seconds", 0.0)) / 3600
    gpu_hours = float(attributes.get("gpu_seconds", 0.0)) / 3600
    failed = sum(trial["state"] == "failed" for trial in sweep.status["trials"])
    many = "trial" if failed == 1 else "trials"
    return f"{_duration(hours)} of the sweep, {gpu_hours:.2f} GPU hours; {failed or 'no'} {many} failed."


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"


def baselines_table(sweep: LoadedSweep) -> dict[str, Any]:
    """Return ``columns`` (titles) and ``rows``: (title, values)."""
    frame = sweep.baselines()
    columns = [term for term in TERMS if term in frame.columns]
    rows = [(str(title), [_value(row[term]) for term in columns]) for title, row in frame.iterrows()]
    return {"columns": [_TITLES[term] for term in columns], "rows": rows}


def trials_table(sweep: LoadedSweep) -> dict[str, Any]:
    """Return the table of trials.

    ``columns`` (name, whether its values are numbers), ``rows``, ``notes`` by trial, ``best``, the best trial's number,
    and ``settings_from``, the index of the first column of a setting.
    """
    frame = sweep.trials()
    settings = [
        name for name in frame.columns[6:-1] if "/" not in name
    ]  # a metric's name has a slash, a setting's a dot
    metrics = [name for name in _SHOWN_METRICS if name in frame.columns]
    names = ["number", "state", "value", *metrics, "epochs", "minutes", *settings]
    frame = frame.assign(minutes=(frame["seconds"] / 60).round(2))
    notes = {state["number"]: _note(state) for state in sweep.status["trials"] if state[RETRY_OF] or state[REPEAT_OF]}
    titles = {"number": "trial", "value": METRIC}
    columns = [(titles.get(name, name), name not in ("state", *settings) or _is_number(frame[name])) for name in names]
    rows = [[_value(value) for value in row] for row in frame[names].itertuples(index=False, name=None)]
    return {
        "columns": columns,
        "rows": rows,
        "notes": notes,
        "settings_from": len(names) - len(settings),
        "best": None if sweep.best is None else sweep.best.number,
    }


def _note(state: Mapping[str, Any]) -> str:
    if state[RETRY_OF] is not None:
        return f"again, after trial {state[RETRY_OF]} failed"
    return f"trial {state[REPEAT_OF]} with another seed"


def _is_number(column: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in column if value is not None)


def _value(value: Any) -> Any:
    """Return a value of a frame as a plain one; None if it is missing."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def time_table(sweep: LoadedSweep) -> list[dict[str, Any]]:
    """Return the time of the trials by state, then in all.

    ``state``, ``trials``, ``hours``, ``gpu_hours``, ``mean_minutes``, and ``training``: the share of the time that the
    steps take, None if their speed is unknown; the rest is starting, validation and writing.
    """
    frame = sweep.trials()
    steps = _steps_per_epoch(sweep)
    rows = []
    for state in [*dict.fromkeys(frame["state"]), None]:
        part = frame if state is None else frame[frame["state"] == state]
        known = part.dropna(subset=["seconds"])
        seconds = float(known["seconds"].sum())
        training = None
        if "train/steps_per_second" in known.columns and steps:
            timed = known.dropna(subset=["train/steps_per_second"])
            spent = (timed["epochs"] * timed["number"].map(steps) / timed["train/steps_per_second"]).sum()
            of = float(timed["seconds"].sum())
            training = min(float(spent) / of, 1.0) if of and not math.isnan(float(spent)) else None
        rows.append(
            {
                "state": state or "all",
                "trials": len(part),
                "hours": seconds / 3600,
                "gpu_hours": float(known["gpu_hours"].sum()),
                "mean_minutes": seconds / 60 / len(known) if len(known) else None,
                "training": training or None,
            }
        )
    return rows if len(frame) else []


def _steps_per_epoch(sweep: LoadedSweep) -> dict[int, int]:
    if sweep.config is None:
        return {}
    default = sweep.config.run.train.steps_per_epoch
    return {
        trial["number"]: int(trial["params"].get("train.steps_per_epoch", default)) for trial in sweep.status["trials"]
    }


def best_settings(sweep: LoadedSweep) -> dict[str, str] | None:
    """Return the best trial's settings as YAML: ``searched`` ones, and ``all``; None while no trial is complete."""
    if sweep.best is None:
        return None
    nested: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in sweep.best.params.items():
        section, _, key = name.partition(".")
        nested[section][key] = value
    try:
        everything = yaml_text(sweep.best.config().model_dump(mode="json"))
    except NuancedError as error:
        everything = f"# {error}\n"
    return {
        "number": str(sweep.best.number),
        "searched": masked(yaml_text(dict(nested))),
        "all": masked(everything),
    }


def failures(sweep: LoadedSweep) -> list[tuple[str, list[int]]]:
    """Return the reasons of failed trials, each with their numbers."""
    found: dict[str, list[int]] = defaultdict(list)
    for trial in sweep.status["trials"]:
        if trial["state"] == "failed":
            found[trial["error"] or "no reason is recorded"].append(trial["number"])
    return sorted(found.items(), key=lambda item: -len(item[1]))


def provenance(sweep: LoadedSweep) -> dict[str, Any]:
    """Return ``facts``, ``versions`` and ``models``, each as pairs of a name and a text."""
    record, attributes = sweep.record, sweep.study.user_attrs
    facts = {
        "started": record.get("started"),
        "git commit": record.get("git_commit"),
        "study": sweep.study.study_name,
        "key of the settings that are not searched": attributes.get("run"),
    }
    pairs = {name: record.get(name) for name in ("versions", "models")}
    return {
        "facts": [(name, str(value)) for name, value in facts.items() if value],
        **{name: list(map(_texts, found.items())) if isinstance(found, dict) else [] for name, found in pairs.items()},
    }


def _texts(pair: tuple[Any, Any]) -> tuple[str, str]:
    return str(pair[0]), str(pair[1])
