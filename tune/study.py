"""The Optuna study of a sweep: where it is kept, what samples and what prunes.

The study is the only truth about trials: their parameters, each epoch's ``val/loss`` (the intermediate
values), how they ended, and in their user attributes ``params`` (the settings tried, by dotted name),
``metrics`` and ``best_epoch`` (of the epoch of lowest ``val/loss``, whose checkpoint is kept), ``error``, ``gpus``
where a trial was given more than the others, and, with several objectives, ``epochs`` (finished ones).
"""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from nuanced_core.errors import ConfigError, DiskError
from tune.config import SETTINGS_FILE, SweepSettings, load_sweep
from tune.flat import RecentTPESampler, SortedHalvingPruner

__all__ = [
    "METRIC",
    "SECONDS_PER_STEP",
    "STUDY_FILE",
    "check_new_study",
    "mend_study",
    "open_storage",
    "open_study",
    "read_storage",
    "read_study",
    "sync_study",
]

METRIC = "val/loss"
SECONDS_PER_STEP = "train/seconds_per_step"  # an objective beside the losses
STUDY_FILE = "study.journal"

# Rungs at 1, 3, 9, … epochs; a third of the trials goes on from each.
_HALVING_REDUCTION = 3
_MEDIAN_STARTUP_TRIALS = 4
_MEDIAN_WARMUP_EPOCHS = 1
_STARTUP_TRIALS = 10  # drawn at random before a sampler learns from them


def open_study(
    folder: Path, settings: SweepSettings, *, create: bool = False, epochs: int | None = None
) -> optuna.Study:
    """The study in a sweep's ``folder``, with the sampler and pruner of ``settings``.

    ``epochs`` are those of a trial that is never stopped, of which Hyperband plans its brackets.

    Raises:
        ConfigError: there is no study, and ``create`` is false; or the database cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells users about itself
    path = folder / STUDY_FILE
    if settings.storage is None and not create and not path.is_file():
        raise ConfigError(f"{folder}: not the folder of a sweep (it holds no {STUDY_FILE})")
    storage = open_storage(folder, settings.storage)
    names = optuna.get_all_study_names(storage)
    # The folder may have been renamed since; a sweep's own file holds one study, whatever its name.
    name = next(iter(names), None) if settings.storage is None else settings.study_name or folder.name
    pruner = _pruner(settings, epochs)
    if create:
        study = optuna.create_study(
            study_name=name or folder.name,
            storage=storage,
            pruner=pruner,
            directions=["minimize"] * len(settings.objectives),
            load_if_exists=True,
        )
        study.set_user_attr("objectives", list(settings.objectives))
    elif name in names and name is not None:
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    else:
        raise ConfigError(f"{path if settings.storage is None else settings.storage}: holds no study of this sweep")
    study.sampler = _sampler(settings, len(study.get_trials(deepcopy=False)))
    return study


def check_new_study(folder: Path, settings: SweepSettings) -> None:
    """Refuse a new sweep whose study's name is taken in its database: the two would share their trials.

    Raises:
        ConfigError: it is, or the database cannot be reached.
    """
    if settings.storage is None:
        return
    name = settings.study_name or folder.name
    if name in optuna.get_all_study_names(open_storage(folder, settings.storage)):
        raise ConfigError(
            f"sweep.storage: {settings.storage}: holds a study {name!r} already; take another sweep.study_name, or go "
            "on with that sweep: nuanced sweep --resume DIR"
        )


def read_study(folder: Path) -> optuna.Study:
    """The study of the sweep in ``folder``, wherever its settings say that it is kept, to look at.

    Raises:
        ConfigError: there is none.
    """
    return open_study(folder, _settings(folder))


def read_storage(folder: Path) -> BaseStorage:
    """Where the study of the sweep in ``folder`` is kept."""
    return open_storage(folder, _settings(folder).storage)


def _settings(folder: Path) -> SweepSettings:
    file = folder / SETTINGS_FILE
    return load_sweep(file).sweep if file.is_file() else SweepSettings()


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """A sweep's journal file, or the database at an SQLAlchemy URL.

    Raises:
        ConfigError: the database cannot be reached.
    """
    if url is None:
        return JournalStorage(_Journal(str(folder / STUDY_FILE)))
    try:
        return RDBStorage(url)
    except Exception as error:  # SQLAlchemy's, and those of the driver that the URL names
        raise ConfigError(f"sweep.storage: {url!r}: cannot be opened: {' '.join(str(error).split())[:200]}") from None


class _Journal(JournalFileBackend):
    """Optuna's journal file, but what is written reaches the disk at ``sync``, not line by line.

    Waiting for the disk at each of a trial's fifteen lines took longer than most else that the driver does. What a
    killed process had written is there all the same; what a machine that lost its power had, up to the last ``sync``.
    """

    _unsynced = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write the lines, or, if the disk is full, nothing."""
        left = memoryview("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
        self._unsynced = True
        self._lock.acquire()  # the dashboard may write too
        try:
            with Path(self._file_path).open("ab", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(before)
                    raise
        finally:
            self._lock.release()

    def sync(self) -> None:
        """Wait for the disk."""
        if self._unsynced:
            self._unsynced = False
            with Path(self._file_path).open("ab") as file:
                os.fsync(file.fileno())


def sync_study(study: optuna.Study) -> None:
    """Wait until what the study was told is on the disk, where it is kept in a journal file.

    Raises:
        OSError: the disk cannot be written.
    """
    backend = getattr(study._storage, "_backend", None)
    if isinstance(backend, _Journal):
        backend.sync()


def mend_study(folder: Path) -> None:
    """Take back what a driver that was killed had half written; for the one that drives the sweep now.

    A machine that lost its power may leave more than half a line: all behind the last whole one.

    Raises:
        DiskError: the file cannot be written.
    """
    path = folder / STUDY_FILE
    try:
        (folder / f"{STUDY_FILE}.lock").unlink(missing_ok=True)
        if not path.is_file():
            return
        with path.open("rb+") as file:
            text = file.read()
            whole = len(text)
            while whole and not _is_whole(text[:whole]):
                whole = text.rfind(b"\n", 0, whole - 1) + 1
            if whole < len(text):
                file.truncate(whole)
    except OSError as error:
        raise DiskError(f"{path}: cannot be mended: {error.strerror}") from None


def _is_whole(text: bytes) -> bool:
    """Whether the last line is one that was written to its end."""
    if not text.endswith(b"\n"):
        return False
    try:
        json.loads(text[text.rfind(b"\n", 0, -1) + 1 :])
    except ValueError:
        return False
    return True


def _sampler(settings: SweepSettings, trials: int) -> optuna.samplers.BaseSampler:
    # After a resume a sampler must not draw again what it drew first: its seed depends on how many trials there are.
    seed = (settings.seed + 1_000_003 * trials) % 2**32
    budget = settings.trials or 3 * _STARTUP_TRIALS
    # The samplers' own default would make a sweep of ten trials a random search.
    startup = min(_STARTUP_TRIALS, math.ceil(budget / 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if settings.sampler == "cmaes":
            # Choices, and what is searched under a condition, it leaves to random draws.
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if settings.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if settings.sampler == "qmc":
            # Which point of the sequence is next, the study remembers: its seed stays.
            return optuna.samplers.QMCSampler(seed=settings.seed, scramble=True, warn_independent_sampling=False)
        # Of several objectives Optuna's own: which trials are good ones is then a matter of all of them.
        kind = RecentTPESampler if len(settings.objectives) == 1 else optuna.samplers.TPESampler
        return kind(
            n_startup_trials=startup,
            # Conditional settings make groups of their own; without this they would be drawn one by one.
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )


def _pruner(settings: SweepSettings, epochs: int | None) -> optuna.pruners.BasePruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.pruner == "none":
            return optuna.pruners.NopPruner()
        if settings.pruner == "median":
            return optuna.pruners.MedianPruner(_MEDIAN_STARTUP_TRIALS, _MEDIAN_WARMUP_EPOCHS)
        if settings.pruner == "patience":
            return optuna.pruners.PatientPruner(None, settings.patience)
        if settings.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=epochs or "auto", reduction_factor=_HALVING_REDUCTION
            )
        return SortedHalvingPruner(_HALVING_REDUCTION)
