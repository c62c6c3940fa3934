"""Settings that a sweep tries first: those that somebody wrote down, and the best of another sweep."""

import logging
from pathlib import Path
from typing import Any

import optuna

from nuanced_core.errors import ConfigError
from tune.config.sweep_config import SweepConfig
from tune.search.results import ranked
from tune.search.study import read_study

__all__ = ["enqueue"]

logger = logging.getLogger(__name__)


def enqueue(study: optuna.Study, config: SweepConfig) -> None:
    """Let the study hand out ``sweep.enqueue`` and the best trials of ``sweep.warm_start``, what it has had left out.

    Raises:
        ConfigError: a setting is not searched or may not have the value, or the other folder holds no sweep.
    """
    for item in first_settings(config):
        study.enqueue_trial(item, skip_if_exists=True)


def first_settings(config: SweepConfig) -> list[dict[str, Any]]:
    """Those settings as Optuna stores them; of another sweep's what this one searches, where its values are allowed.

    Raises:
        ConfigError: as ``enqueue``.
    """
    search, settings = config.search, config.sweep
    found = [search.enqueued(item, f"sweep.enqueue[{i}]") for i, item in enumerate(settings.enqueue)]
    if settings.warm_start is None:
        return found
    folder = Path(settings.warm_start)
    trials = ranked(read_study(folder))[: settings.warm_start_trials]
    if not trials:
        raise ConfigError(f"sweep.warm_start: {folder}: no trial is complete there; name another sweep")
    for trial in trials:
        params = trial.user_attrs.get("params", {})
        taken: dict[str, Any] = {}
        for name, value in params.items():
            try:
                taken |= search.enqueued({name: value}, "sweep.warm_start")
            except ConfigError as error:
                logger.warning("trial %s of %s: left out: %s", trial.number, folder, error)
        if taken:
            found.append(taken)
    return found
