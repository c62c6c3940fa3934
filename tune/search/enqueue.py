"""The settings that a sweep tries first: those of ``sweep.enqueue``, and the best trials of ``sweep.warm_start``."""

import logging
from typing import Any

import optuna

from nuanced_core.errors import ConfigError
from nuanced_core.paths import user_path
from tune.config.sweep_config import SweepConfig
from tune.search.results import ranked
from tune.search.study import read_study

__all__ = ["enqueue"]

logger = logging.getLogger(__name__)


def enqueue(study: optuna.Study, config: SweepConfig) -> None:
    """Enqueue ``sweep.enqueue`` and the best trials of ``sweep.warm_start``, except what the study already holds.

    Of the trials of another sweep, a setting that this sweep does not search, or a value that it does not allow, is
    left out with a warning.

    Raises:
        ConfigError: a setting of ``sweep.enqueue`` is not searched or its value is not allowed, or the folder of
            ``sweep.warm_start`` holds no sweep or no complete trial.
    """
    for params in _first_params(config):
        study.enqueue_trial(params, skip_if_exists=True)


def _first_params(config: SweepConfig) -> list[dict[str, Any]]:
    """Return the settings to enqueue, each in the form in which Optuna stores it."""
    space, settings = config.search, config.sweep
    found = [space.as_stored(params, f"sweep.enqueue[{i}]") for i, params in enumerate(settings.enqueue)]
    if settings.warm_start is None:
        return found
    folder = user_path(settings.warm_start)
    trials = ranked(read_study(folder))[: settings.warm_start_trials]
    if not trials:
        raise ConfigError(f"sweep.warm_start: {folder}: holds no complete trial; name another sweep")
    for trial in trials:
        allowed: dict[str, Any] = {}
        for name, value in trial.user_attrs.get("params", {}).items():
            try:
                allowed |= space.as_stored({name: value}, "sweep.warm_start")
            except ConfigError as error:
                logger.warning("Trial %d of %s: setting left out: %s", trial.number, folder, error)
        if allowed:
            found.append(allowed)
    return found
