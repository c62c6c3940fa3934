"""A sweep's trials and their baselines as data frames."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from tune.analysis.drawn_study import searched_names
from tune.search.results import ranked
from tune.search.study import METRIC

__all__ = ["PREDICTORS", "TERMS", "baselines_frame", "leading_trials", "trials_frame"]

# What an encoder is compared with, by the group of its scalars: "nearest" of "nearest/loss".
PREDICTORS = {"baseline": "mean voice", "nearest": "nearest voice", "ridge": "ridge regression", "oracle": "oracle"}
TERMS = ("loss", "stft", "style", "identity", "pitch")  # the last two of people


def trials_frame(trials: Sequence[FrozenTrial], states: Sequence[Mapping[str, Any]], gpus: float) -> pd.DataFrame:
    """Return a row per trial.

    Columns: ``number``, ``state``, ``value``, ``epochs``, ``seconds`` and ``gpu_hours`` (both with the time between an
    interruption and its resumption; missing if the trial is interrupted or waits), a column per searched setting,
    a column per metric of the trial's best epoch, ``error``.

    Args:
        states: the trials as ``study_status`` describes them.
        gpus: share of a GPU that a trial has, unless it says otherwise.
    """
    names = searched_names(trials)
    names += [name for state in states for name in state["params"] if name not in names]
    metrics = sorted({name for trial in trials for name in trial.user_attrs.get("metrics", {})})
    names = list(dict.fromkeys(names))
    rows = []
    for trial, state in zip(trials, states, strict=False):  # a trial may have begun in between
        seconds = _seconds(trial, state["state"])
        hours = None if seconds is None else seconds / 3600 * float(trial.user_attrs.get("gpus", gpus))
        found = trial.user_attrs.get("metrics", {})
        rows.append(
            {
                **{name: state[name] for name in ("number", "state", "value", "epochs")},
                "seconds": seconds,
                "gpu_hours": hours,
                **{name: state["params"].get(name) for name in names},
                **{name: found.get(name) for name in metrics},
                "error": state["error"],
            }
        )
    first = ("number", "state", "value", "epochs", "seconds", "gpu_hours")
    frame = pd.DataFrame(rows, columns=[*first, *names, *metrics, "error"])
    numbers = ["value", "seconds", "gpu_hours", *metrics]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def _seconds(trial: FrozenTrial, state: str) -> float | None:
    if trial.datetime_start is None or state in ("interrupted", "waiting"):
        return None
    end = trial.datetime_complete or datetime.datetime.now()  # local time without a zone, as in the study
    return (end - trial.datetime_start).total_seconds()


def leading_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials by rank, then the others that have metrics, by increasing ``val/loss``."""
    best = ranked(study)
    known = {trial.number for trial in best}
    others = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if METRIC in trial.user_attrs.get("metrics", {})
        and trial.number not in known
        and trial.state in (TrialState.PRUNED, TrialState.RUNNING)
    ]
    return [*best, *sorted(others, key=lambda trial: float(trial.user_attrs["metrics"][METRIC]))]


def baselines_frame(study: optuna.Study) -> pd.DataFrame:
    """Return the best trial and what it is compared with: a row per predictor, a column per term that is known.

    The first row is the best complete trial or, before there is one, the best so far. A higher identity is better;
    lower is better in every other term.
    """
    leading = leading_trials(study)
    if not leading:
        return pd.DataFrame()
    metrics = leading[0].user_attrs.get("metrics", {})
    label = "best trial" if leading[0].state == TrialState.COMPLETE else "best trial so far"
    groups = {"val": f"{label} ({leading[0].number})", **PREDICTORS}
    rows = {title: {term: metrics.get(f"{group}/{term}") for term in TERMS} for group, title in groups.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index").astype("float64")
    return frame.dropna(axis=0, how="all").dropna(axis=1, how="all")
