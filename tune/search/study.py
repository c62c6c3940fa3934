"""The Optuna study of a sweep: creating and opening it in the sweep's folder or in a database.

The study is the only source of truth about trials. It holds their parameters, the ``val/loss`` of each epoch (as
intermediate values) and their final states. The user attributes of a trial are:

- ``params``: its settings, by dotted name;
- ``metrics`` and ``best_epoch``: of the epoch with the lowest ``val/loss``, whose checkpoint is kept;
- ``error``: why it failed;
- ``gpus``: its share of a GPU, if that is larger than ``sweep.gpus_per_trial``;
- ``epochs``: number of finished epochs, in a study with several objectives.
"""

from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from nuanced_core.errors import ConfigError
from nuanced_core.paths import user_path
from tune.config.sweep_config import SETTINGS_FILE, load_sweep
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import STUDY_FILE, StudyJournal
from tune.search.pruners import make_pruner
from tune.search.samplers import make_sampler

__all__ = ["METRIC", "SECONDS_PER_STEP", "check_new_study", "open_storage", "open_study", "read_storage", "read_study"]

METRIC = "val/loss"
SECONDS_PER_STEP = "train/seconds_per_step"  # the objective that is not a loss


def open_study(
    folder: Path, settings: SweepSettings, *, create: bool = False, epochs: int | None = None
) -> optuna.Study:
    """Open the study of the sweep in ``folder``, with the sampler and the pruner of ``settings``.

    Args:
        create: create the study if it does not exist.
        epochs: epochs of a trial that is not stopped, from which Hyperband derives its brackets; None if unknown.

    Raises:
        ConfigError: the study does not exist and ``create`` is false, or the database cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Optuna logs each study and trial at INFO
    path = folder / STUDY_FILE
    if settings.storage is None and not create and not path.is_file():
        raise ConfigError(f"{folder}: not the folder of a sweep (it holds no {STUDY_FILE})")
    storage = open_storage(folder, settings.storage)
    names = optuna.get_all_study_names(storage)
    # The folder may have been renamed, so the name of the only study in its journal is not checked.
    name = next(iter(names), None) if settings.storage is None else settings.study_name or folder.name
    pruner = make_pruner(settings, epochs)
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
    study.sampler = make_sampler(settings, len(study.get_trials(deepcopy=False)))
    return study


def check_new_study(folder: Path, settings: SweepSettings) -> None:
    """Check that the database holds no study with a new sweep's study name: the two would share their trials.

    Raises:
        ConfigError: the name is taken, or the database cannot be reached.
    """
    if settings.storage is None:
        return
    name = settings.study_name or folder.name
    if name in optuna.get_all_study_names(open_storage(folder, settings.storage)):
        raise ConfigError(
            f"sweep.storage: {settings.storage}: holds a study {name!r} already; take another sweep.study_name, or "
            "resume that sweep: nuanced sweep --resume DIR"
        )


def read_study(folder: Path) -> optuna.Study:
    """Open the study of the sweep in ``folder`` for reading, from the storage that its settings name.

    Raises:
        ConfigError: the study does not exist.
    """
    return open_study(folder, _settings(folder))


def read_storage(folder: Path) -> BaseStorage:
    """Open the Optuna storage that holds the study of the sweep in ``folder``.

    Raises:
        ConfigError: the database cannot be reached.
    """
    return open_storage(folder, _settings(folder).storage)


def _settings(folder: Path) -> SweepSettings:
    file = folder / SETTINGS_FILE
    return load_sweep(file).sweep if file.is_file() else SweepSettings()


def _expanded(url: str) -> str:
    """Replace a ``~`` at the beginning of an SQLite database's path by the home folder."""
    dialect, slashes, path = url.partition(":///")
    return f"{dialect}{slashes}{user_path(path)}" if dialect.startswith("sqlite") and path.startswith("~") else url


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """Open the journal file in the sweep's ``folder``, or the database at the SQLAlchemy ``url`` if it is not None.

    Raises:
        ConfigError: the database cannot be reached.
    """
    if url is None:
        return JournalStorage(StudyJournal(str(folder / STUDY_FILE)))
    try:
        return RDBStorage(_expanded(url))
    except Exception as error:  # of SQLAlchemy, or of the database driver that the URL names
        raise ConfigError(f"sweep.storage: {url!r}: cannot be opened: {' '.join(str(error).split())[:200]}") from None
