"""Trials that are added to the study instead of sampled: ``sweep.enqueue``, the best ones of another sweep
(``sweep.warm_start``), failed ones that are run again, and the other seeds of ``sweep.repeats``.

A failed trial that is run again stays failed; the trial that replaces it has its number as the user attribute
``retry_of``. A repeat has the number of its settings' first trial as ``repeat_of``, and what it adds to the seed as
``repeat``.
"""

import json
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError
from nuanced_core.paths import user_path
from tune.config.space import SEED, Space
from tune.config.sweep_config import SweepConfig
from tune.search.results import ranked
from tune.search.study import REPEAT, REPEAT_OF, RETRY_OF, RUN, read_study

__all__ = ["check_enqueued", "enqueue", "enqueue_failed", "enqueue_repeats", "next_trial"]

logger = logging.getLogger(__name__)

_WARM_START = "warm_start"  # the study's attribute: the sweep whose best settings it has got


def enqueue(study: optuna.Study, config: SweepConfig) -> None:
    """Enqueue ``sweep.enqueue`` and the best trials of ``sweep.warm_start``, except what the study already holds.

    What is left out is logged: settings of ``sweep.enqueue`` that a trial has; of another sweep, a setting that this
    sweep does not search or a value that it does not allow.

    Raises:
        ConfigError: a setting of ``sweep.enqueue`` is not searched or its value is not allowed, or the folder of
            ``sweep.warm_start`` holds no sweep or no complete trial.
    """
    for i, params in enumerate(config.sweep.enqueue):
        place = f"sweep.enqueue[{i}]"
        stored = config.search.as_stored(params, place)
        earlier = _trial_with(study, stored)
        if earlier is None:
            _check_used(config.search, params, place)
            study.enqueue_trial(stored)
        else:
            logger.info("%s: %s: left out: %s", place, json.dumps(params), _outcome(earlier))
    warm_start = config.sweep.warm_start
    if warm_start is not None and study.user_attrs.get(_WARM_START) != warm_start:
        for stored in _warm_start(config, warm_start):
            if _trial_with(study, stored) is None:
                study.enqueue_trial(stored)
        study.set_user_attr(_WARM_START, warm_start)  # that sweep may go on, or be removed


def check_enqueued(config: SweepConfig) -> None:
    """Check what ``enqueue`` would enqueue in a new study, before anything is prepared for its trials.

    Raises:
        ConfigError: as ``enqueue``.
    """
    for i, params in enumerate(config.sweep.enqueue):
        config.search.as_stored(params, f"sweep.enqueue[{i}]")
        _check_used(config.search, params, f"sweep.enqueue[{i}]")
    if config.sweep.warm_start is not None:
        _trials_of(config.sweep.warm_start, config.sweep.warm_start_trials)


def enqueue_failed(study: optuna.Study, config: SweepConfig) -> int:
    """Enqueue the settings of each failed trial once more, and return their number.

    Trials that were replaced already are left out, and, with a warning, those whose settings contradict each other or
    are no longer allowed.
    """
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    count = 0
    for trial in trials:
        if trial.state != TrialState.FAIL or trial.number in replaced or "params" not in trial.user_attrs:
            continue
        try:
            stored = _checked(config.search, config.run, trial.user_attrs["params"])
        except ConfigError as error:
            logger.warning("trial %d would fail again: %s", trial.number, error)
            continue
        kept = {name: trial.user_attrs[name] for name in (REPEAT_OF, REPEAT) if name in trial.user_attrs}
        study.enqueue_trial(stored, {**kept, RETRY_OF: trial.number})
        count += 1
    return count


def enqueue_repeats(study: optuna.Study, space: Space, run_key: str, repeats: int, number: int | None = None) -> int:
    """Enqueue the complete trials of a study with other seeds, and return the number of trials added.

    Trials of another run, or with settings that a trial of ``space`` could not have, are not repeated: their repeats
    would differ from them in more than the seed.

    Args:
        run_key: key of the run that is searched now, as in the attribute ``run``.
        repeats: seeds that each complete trial is to be trained with, its own included.
        number: of the trial to repeat; None: all that are no repeats themselves, the best one first.
    """
    trials = study.get_trials(deepcopy=False)
    if number is not None and REPEAT in trials[number].user_attrs:
        return 0
    existing = {(t.user_attrs[REPEAT_OF], t.user_attrs[REPEAT]) for t in trials if REPEAT in t.user_attrs}
    first = [trials[number]] if number is not None else [t for t in trials if REPEAT not in t.user_attrs]
    first_key = study.user_attrs.get(RUN, run_key)
    complete = [
        trial
        for trial in first
        if trial.state == TrialState.COMPLETE
        and trial.user_attrs.get(RUN, first_key) == run_key
        and space.is_complete(_without_seed(space, trial.user_attrs.get("params", {})))
    ]
    count = 0
    for trial in sorted(complete, key=lambda trial: trial.values[0]):
        for repeat in range(1, repeats):
            if (trial.number, repeat) not in existing:
                study.enqueue_trial(dict(trial.params), {REPEAT_OF: trial.number, REPEAT: repeat})
                count += 1
    return count


def next_trial(study: optuna.Study, retries: deque[int]) -> optuna.Trial:
    """Return the study's next trial.

    Args:
        retries: Optuna's ids of the enqueued trials that replace failed ones. They come first: the budget has room for
            them, which other enqueued trials would take.
    """
    if not retries:
        return study.ask()
    trial_id = retries.popleft()
    study._storage.set_trial_state_values(trial_id, TrialState.RUNNING)  # as study.ask does with the first one waiting
    study._thread_local.cached_all_trials = None
    return optuna.Trial(study, trial_id)


def _checked(space: Space, run: RunConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's settings as Optuna stores them; raise ConfigError if a trial with them would fail."""
    searched = _without_seed(space, params)
    space.apply(run, searched)
    return space.as_stored(searched, "search")


def _trial_with(study: optuna.Study, stored: Mapping[str, Any]) -> FrozenTrial | None:
    """Return the latest trial with these settings, as Optuna stores them; a waiting one if they are enqueued."""
    for trial in reversed(study.get_trials(deepcopy=False)):
        if trial.system_attrs.get("fixed_params", trial.params) == stored or trial.params == stored:
            return trial
    return None


def _outcome(trial: FrozenTrial) -> str:
    """Describe a trial whose settings are enqueued again."""
    if trial.state == TrialState.WAITING:
        return "it is enqueued already"
    if trial.state == TrialState.FAIL:
        reason = trial.user_attrs.get("error", "no reason is known")
        return f"trial {trial.number} has failed with it ({reason}); --retry-failed runs failed trials again"
    state = {TrialState.RUNNING: "has it and is not finished", TrialState.PRUNED: "was pruned with it"}
    outcome = state.get(trial.state) or f"has it: {trial.values[0]:.4g}"
    return f"trial {trial.number} {outcome}"


def _warm_start(config: SweepConfig, warm_start: str) -> list[dict[str, Any]]:
    """Return the best settings of another sweep, each in the form in which Optuna stores it."""
    folder, found = user_path(warm_start), []
    for trial in _trials_of(warm_start, config.sweep.warm_start_trials):
        allowed, left_out = _allowed(config.search, trial.user_attrs.get("params", {}))
        for reason in left_out:
            logger.warning("Trial %d of %s: setting left out: %s", trial.number, folder, reason)
        if allowed:
            found.append(allowed)
    return found


def _trials_of(warm_start: str, most: int) -> list[FrozenTrial]:
    folder = user_path(warm_start)
    try:
        trials = ranked(read_study(folder))[:most]
    except ConfigError as error:
        raise ConfigError(f"sweep.warm_start: {error}; name another sweep, or set it to null") from None
    if not trials:
        raise ConfigError(f"sweep.warm_start: {folder}: holds no complete trial; name another sweep")
    return trials


def _check_used(space: Space, params: Mapping[str, Any], place: str) -> None:
    for name, reason in space.unused(params).items():
        raise ConfigError(f"{place}: {name}: {reason}")


def _allowed(space: Space, params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what a space allows of a trial's settings, as Optuna stores it, and why it does not allow the others."""
    allowed: dict[str, Any] = {}
    left_out = []
    for name, value in _without_seed(space, params).items():
        try:
            allowed |= space.as_stored({name: value}, "sweep.warm_start")
        except ConfigError as error:
            left_out.append(str(error))
    for name, reason in space.unused({name: params[name] for name in allowed}).items():
        del allowed[name]
        left_out.append(f"sweep.warm_start: {name}: {reason}")
    return allowed, left_out


def _without_seed(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's settings without the seed that ``sweep.repeats`` gave it."""
    return {name: value for name, value in params.items() if name != SEED or SEED in space.dimensions}
