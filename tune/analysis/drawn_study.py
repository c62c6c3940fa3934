"""A copy of a study in memory for Optuna's drawings: its texts safe in Plotly, without what drawings do not show."""

import copy
import html
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

__all__ = ["drawn_study", "searched_names"]


def drawn_study(study: optuna.Study, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """Return a study in memory with copies of ``trials``, which are numbered from 0 in their order.

    Plotly reads some HTML in labels, so texts among the choices are escaped. User attributes, which Optuna's drawings
    put into every label, are left out.
    """
    drawn = optuna.create_study(directions=study.directions)
    drawn.add_trials([_drawn(trial) for trial in trials])
    return drawn


def searched_names(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the settings that trials search, in the order in which they are first searched."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _drawn(trial: FrozenTrial) -> FrozenTrial:
    made = copy.copy(trial)
    made._user_attrs, made._system_attrs = {}, {}
    distributions = {name: _escaped(distribution) for name, distribution in trial.distributions.items()}
    made.params = {name: _escape(value) for name, value in trial.params.items()}
    made.distributions = distributions
    return made


def _escaped(distribution: BaseDistribution) -> BaseDistribution:
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    return CategoricalDistribution([_escape(choice) for choice in distribution.choices])


def _escape(value: Any) -> Any:
    return html.escape(value, quote=False) if isinstance(value, str) else value
