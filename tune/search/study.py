"""The Optuna study of a sweep: where it is kept, what samples and what prunes.

The study is the only truth about trials: their parameters, each epoch's ``val/loss`` (the intermediate
values), how they ended, and in their user attributes ``params`` (the settings tried, by dotted name),
``metrics`` and ``best_epoch`` (of the epoch of lowest ``val/loss``, whose checkpoint is kept), ``error``, ``gpus``
where a trial was given more than the others, and, with several objectives, ``epochs`` (finished ones).
"""

from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from nuanced_core.errors import ConfigError
from tune.config.sweep_config import SETTINGS_FILE, load_sweep
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import STUDY_FILE, StudyJournal
from tune.search.pruners import make_pruner
from tune.search.samplers import make_sampler

__all__ = ["METRIC", "SECONDS_PER_STEP", "check_new_study", "open_storage", "open_study", "read_storage", "read_study"]

METRIC = "val/loss"
SECONDS_PER_STEP = "train/seconds_per_step"  # an objective beside the losses


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
        return JournalStorage(StudyJournal(str(folder / STUDY_FILE)))
    try:
        return RDBStorage(url)
    except Exception as error:  # SQLAlchemy's, and those of the driver that the URL names
        raise ConfigError(f"sweep.storage: {url!r}: cannot be opened: {' '.join(str(error).split())[:200]}") from None
