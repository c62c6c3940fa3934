"""The figures of a sweep: Optuna's own where they fit, in colours that colour-blind people can tell apart."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import (
    plot_contour,
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_pareto_front,
    plot_slice,
)
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from nuanced_core.errors import one_line
from tune.analysis.drawn_study import drawn_study, searched_names
from tune.analysis.tables import PREDICTORS
from tune.search.study import METRIC

__all__ = ["FigureSource", "Importance", "figures", "importance", "slices"]

logger = logging.getLogger(__name__)

# Okabe and Ito's colours, of which blue and vermillion are told apart by everybody.
BLUE, SKY, GREEN, ORANGE, VERMILLION, PURPLE, GREY = (
    *("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#8A8F98"),
)
SCALE = [[0.0, BLUE], [0.5, "#9AA5AE"], [1.0, ORANGE]]  # both ends are seen on white and on black
_STATE_COLORS = {"complete": SKY, "pruned": ORANGE, "failed": VERMILLION, "running": GREEN, "interrupted": PURPLE}
_PREDICTOR_COLORS = {"baseline": VERMILLION, "nearest": PURPLE, "ridge": GREEN, "oracle": GREY}
_LEAST_COMPLETE = 2  # trials without which there is nothing to compare
_MOST_LINES = 200  # of parallel coordinates
_MOST_CONTOUR_TRIALS = 150  # a contour's size grows with their square
_MOST_TICKS = 12  # epochs that get one each
_LEAST_TOP = 5  # trials that PED-ANOVA should compare with the others


@dataclass(frozen=True)
class FigureSource:
    """What figures are drawn from.

    Args:
        states: the trials as ``study_status`` describes them.
        baselines: ``loss`` by the group of its scalars.
        curves: ``val/loss`` as ``read_curves`` returns it, called if the study has no values of epochs.
    """

    study: optuna.Study
    trials: Sequence[FrozenTrial]
    states: Sequence[Mapping[str, Any]]
    objectives: Sequence[str]
    baselines: Mapping[str, float]
    best: int | None
    curves: Callable[[], pd.DataFrame]

    @property
    def complete(self) -> list[FrozenTrial]:
        """The complete trials."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def target(self) -> Callable[[FrozenTrial], float] | None:
        """The first objective where there are several."""
        return None if len(self.objectives) == 1 else lambda trial: float(trial.values[0])


@dataclass(frozen=True)
class Importance:
    """How much each setting distinguishes the best trials from all, by PED-ANOVA.

    Args:
        shares: by setting, largest first; they add up to 1.
        top, complete: number of the best trials, and of all that they are compared with.
    """

    shares: Mapping[str, float]
    top: int
    complete: int

    @property
    def is_unsure(self) -> bool:
        """Whether there are too few trials to rely on it."""
        return self.top < _LEAST_TOP or self.complete < 4 * _LEAST_TOP


def importance(source: FigureSource) -> Importance | None:
    """Return the importance of the settings; None if there are too few complete trials to tell.

    The best tenth of the trials, but at least five, is compared with all.
    """
    complete = source.complete
    if len(complete) < 2 * _LEAST_COMPLETE or not searched_names(complete):
        return None
    quantile = min(0.5, max(0.1, _LEAST_TOP / len(complete)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few trials, which is_unsure says too
            shares = get_param_importances(source.study, evaluator=evaluator)  # several objectives: to their front
    except (ValueError, RuntimeError) as error:  # such as settings that never varied
        logger.debug("no importance: %s", error)
        return None
    if not shares or not all(math.isfinite(share) for share in shares.values()):
        return None
    return Importance(shares, math.ceil(quantile * len(complete)), len(complete))


def figures(source: FigureSource) -> dict[str, go.Figure]:
    """Return the figures that the trials so far allow, by name.

    ``history``, ``importance``, ``slices``, ``contour`` (of the two most important settings), ``parallel``, ``curves``
    and, with several objectives, ``pareto``.
    """
    drawings: dict[str, Callable[[FigureSource], go.Figure | None]] = {
        "history": _history,
        "importance": _importance,
        "slices": _slices,
        "contour": _contour,
        "parallel": _parallel,
        "curves": _curves,
        "pareto": _pareto,
    }
    found = {}
    for name, draw in drawings.items():
        figure = _drawn(name, draw, source)
        if figure is not None:
            found[name] = figure
    return found


def slices(source: FigureSource) -> dict[str, go.Figure]:
    """Return one figure a setting: its values, and the loss of the complete trials that have them."""
    if len(source.complete) < _LEAST_COMPLETE:
        return {}
    study = drawn_study(source.study, source.trials)
    found = {name: _drawn(f"slice of {name}", _slice(study, name), source) for name in _by_importance(source)}
    return {name: figure for name, figure in found.items() if figure is not None}


def _drawn(name: str, draw: Callable[[FigureSource], go.Figure | None], source: FigureSource) -> go.Figure | None:
    try:
        figure = draw(source)
    except Exception as error:  # a figure that cannot be drawn leaves the others
        logger.warning("figure %s cannot be drawn: %s", name, one_line(error))
        return None
    return None if figure is None or not figure.data else figure


def _by_importance(source: FigureSource) -> list[str]:
    found = importance(source)
    first = [] if found is None else list(found.shares)
    return list(dict.fromkeys([*first, *searched_names(source.complete)]))


def _history(source: FigureSource) -> go.Figure | None:
    if not source.complete:
        return None
    name = source.objectives[0]
    study = drawn_study(source.study, source.trials)
    figure = plot_optimization_history(study, target=source.target, target_name=name)
    figure.update_traces(marker={"color": SKY}, name="complete trial", selector={"mode": "markers"})
    line = {"color": BLUE, "width": 3, "shape": "hv"}
    figure.update_traces(line=line, name="best so far", selector={"mode": "lines"})
    last = max(len(source.trials) - 1, 1)
    for group, title in PREDICTORS.items():
        if name == METRIC and group in source.baselines:
            line = {"color": _PREDICTOR_COLORS[group], "dash": "dash", "width": 2}
            trace = go.Scatter(x=[0, last], y=[source.baselines[group]] * 2, mode="lines", name=title, line=line)
            # The oracle is so much better that the trials would all look alike beside it.
            trace.visible = "legendonly" if group == "oracle" else True
            figure.add_trace(trace)
    figure.update_layout(xaxis_title="trial", yaxis_title=name)
    return figure


def _importance(source: FigureSource) -> go.Figure | None:
    found = importance(source)
    if found is None:
        return None
    names = list(found.shares)[::-1]
    bar = go.Bar(
        x=[found.shares[name] for name in names],
        y=names,
        orientation="h",
        marker={"color": BLUE},
        text=[f"{found.shares[name]:.0%}" for name in names],
        textposition="outside",
        cliponaxis=False,
    )
    figure = go.Figure(bar)
    most = 1.15 * max(found.shares.values())
    axis = {"title": "importance", "tickformat": ".0%", "range": [0, most], "nticks": 6}
    figure.update_layout(xaxis=axis, height=90 + 28 * len(names))
    figure.update_yaxes(automargin=True)
    return figure


def _slice(study: optuna.Study, name: str) -> Callable[[FigureSource], go.Figure | None]:
    def draw(source: FigureSource) -> go.Figure:
        figure = plot_slice(study, params=[name], target=source.target, target_name=source.objectives[0])
        marker = {"colorscale": SCALE, "reversescale": True, "line": {"width": 0}, "showscale": False}
        figure.update_traces(marker=marker)
        figure.update_xaxes(title=None, **_log_ticks(source, name))
        return figure

    return draw


def _log_ticks(source: FigureSource, name: str) -> dict[str, Any]:
    """Return the ticks of a setting on a logarithmic axis; nothing for another axis."""
    trials = [trial for trial in source.complete if name in trial.params]
    if not all(getattr(trial.distributions[name], "log", False) for trial in trials):
        return {}
    values = [float(trial.params[name]) for trial in trials]
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    digits = (1, 2, 5) if len(decades) < 4 else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _slices(source: FigureSource) -> go.Figure | None:
    if len(source.complete) < _LEAST_COMPLETE:
        return None
    study = drawn_study(source.study, source.trials)
    return plot_slice(study, target=source.target, target_name=source.objectives[0])


def _contour(source: FigureSource) -> go.Figure | None:
    """The two most important settings that enough trials have in common, each with several values."""
    complete = source.complete
    for pair in combinations(_by_importance(source)[:6], 2):
        both = [trial for trial in complete if all(name in trial.params for name in pair)]
        if len(both) > _LEAST_COMPLETE and all(len({trial.params[name] for trial in both}) > 1 for name in pair):
            study = drawn_study(source.study, _spread(_by_rank(source), _MOST_CONTOUR_TRIALS))
            figure = plot_contour(study, params=list(pair), target=source.target, target_name=source.objectives[0])
            figure.update_traces(colorscale=SCALE, reversescale=False, selector={"type": "contour"})
            first, second = sorted(pair)  # as Optuna orders them
            figure.update_xaxes(_log_ticks(source, first))
            figure.update_yaxes(_log_ticks(source, second))
            return figure
    return None


def _by_rank(source: FigureSource) -> list[FrozenTrial]:
    """Return the complete trials, the lowest first objective first."""
    return sorted(source.complete, key=source.target or (lambda trial: float(trial.value or 0)))


def _spread(trials: Sequence[FrozenTrial], most: int) -> list[FrozenTrial]:
    """Return at most so many trials, evenly over their order, the first and the last among them."""
    if len(trials) <= most:
        return list(trials)
    return [trials[n * (len(trials) - 1) // (most - 1)] for n in range(most)]


def _parallel(source: FigureSource) -> go.Figure | None:
    ranks = _by_rank(source)
    if len(ranks) < _LEAST_COMPLETE:
        return None
    study = drawn_study(source.study, list(reversed(ranks[:_MOST_LINES])))  # the best are drawn last, on top
    names = sorted(searched_names(ranks[:_MOST_LINES]))  # as Optuna orders them
    figure = plot_parallel_coordinate(study, params=names, target=source.target, target_name=source.objectives[0])
    figure.update_xaxes(ticktext=[source.objectives[0], *names])  # Optuna shortens them, some to the same
    figure.for_each_annotation(lambda annotation: annotation.update(font={"color": None, "size": 11}))
    for trace in figure.data:
        if trace.mode == "lines" and trace.y and trace.y[0] is not None:
            trace.line.color = sample_colorscale(SCALE, [min(max(float(trace.y[0]), 0.0), 1.0)])[0]
        elif trace.mode == "markers":
            trace.marker.colorscale, trace.marker.reversescale = SCALE, False
    return figure


def _curves(source: FigureSource) -> go.Figure | None:
    points = {t.number: sorted(t.intermediate_values.items()) for t in source.trials if t.intermediate_values}
    unit = "epoch"
    if not points and len(source.objectives) > 1:  # Optuna keeps no values of epochs then
        curves = source.curves()
        groups = curves[curves["tag"] == METRIC].groupby("trial")
        points = {int(number): list(zip(group["step"], group["value"], strict=True)) for number, group in groups}
        unit = "step"
    if not any(len(found) > 1 for found in points.values()):
        return None
    figure = go.Figure()
    for state, color in _STATE_COLORS.items():
        numbers = [s["number"] for s in source.states if s["state"] == state and s["number"] in points]
        if numbers:
            line = {"color": color, "width": 1}
            figure.add_trace(_lines(points, numbers, f"{state} ({len(numbers)})", line=line, marker={"size": 4}))
    ends = [
        (s["number"], points[s["number"]][-1])
        for s in source.states
        if s["state"] == "pruned" and s["number"] in points
    ]
    if ends:
        last = [point for _, point in ends]
        marker = {"symbol": "x", "size": 9, "color": VERMILLION}
        x, y = [step for step, _ in last], [value for _, value in last]
        text = [f"trial {number}" for number, _ in ends]
        figure.add_trace(go.Scatter(x=x, y=y, text=text, mode="markers", name="stopped by the pruner", marker=marker))
    if source.best in points:
        look: dict[str, Any] = {"line": {"color": BLUE, "width": 4}, "marker": {"size": 9, "symbol": "diamond"}}
        figure.add_trace(_lines(points, [source.best], f"best trial ({source.best})", **look))
    figure.update_layout(xaxis_title=unit, yaxis_title=METRIC, hovermode="closest")
    if max(found[-1][0] for found in points.values()) <= _MOST_TICKS:
        figure.update_xaxes(dtick=1)
    return figure


def _lines(points: Mapping[int, Sequence[tuple[int, float]]], numbers: Sequence[int], name: str, **look: Any) -> Any:
    """The curves of several trials as one trace, with gaps between them."""
    x, y, text = [], [], []
    for number in numbers:
        x += [*(step for step, _ in points[number]), None]
        y += [*(value for _, value in points[number]), None]
        text += [f"trial {number}"] * (len(points[number]) + 1)
    return go.Scatter(x=x, y=y, text=text, mode="lines+markers", name=name, **look)


def _pareto(source: FigureSource) -> go.Figure | None:
    if len(source.objectives) < 2 or not source.complete:
        return None
    if len(source.objectives) == 2:
        study = drawn_study(source.study, source.trials)
        figure = plot_pareto_front(study, target_names=list(source.objectives))
        for trace in figure.data:
            is_front = "Best" in str(trace.name)
            trace.name = "Pareto front" if is_front else "other trials"
            trace.marker = {"color": BLUE if is_front else GREY, "symbol": "diamond" if is_front else "circle"}
        return figure
    pairs = list(combinations(range(len(source.objectives)), 2))
    front = {trial.number for trial in source.study.best_trials}
    figure = make_subplots(rows=len(pairs), cols=1, vertical_spacing=0.3 / len(pairs))
    for row, (a, b) in enumerate(pairs, start=1):
        for is_front, title, color in ((False, "other trials", GREY), (True, "Pareto front", BLUE)):
            trials = [trial for trial in source.complete if (trial.number in front) == is_front]
            trace = go.Scatter(
                x=[trial.values[a] for trial in trials],
                y=[trial.values[b] for trial in trials],
                text=[f"trial {trial.number}" for trial in trials],
                mode="markers",
                name=title,
                showlegend=row == 1,
                marker={"color": color, "symbol": "diamond" if is_front else "circle"},
            )
            figure.add_trace(trace, row=row, col=1)
        figure.update_xaxes(title=source.objectives[a], row=row, col=1)
        figure.update_yaxes(title=source.objectives[b], row=row, col=1)
    figure.update_layout(height=320 * len(pairs))
    return figure
