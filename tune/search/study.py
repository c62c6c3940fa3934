"""The Optuna study of a sweep: creating and opening it in the sweep's folder or in a database.

The study is the only source of truth about trials. It holds their parameters, the ``val/loss`` of each epoch (as
intermediate values) and their final states. The user attributes of a trial are:

- ``params``: its settings, by dotted name;
- ``metrics`` and ``best_epoch``: of the epoch with the lowest ``val/loss``, whose checkpoint is kept;
- ``error``: why it failed;
- ``gpus``: its share of a GPU, if that is larger than ``sweep.gpus_per_trial``;
- ``epochs``: number of finished epochs, in a study with several objectives;
- ``retry_of``: number of the failed trial whose settings it has;
- ``repeat_of`` and ``repeat``: of a repeat (``sweep.repeats``), the number of its settings' first trial and what is
  added to that trial's seed;
- ``run``: key of the settings that are not searched, if they are not those that the study began with. The study has
  these as its own attribute ``run``.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.errors import ConfigError, one_line
from tune.config.places import database_file, database_url, moved_into
from tune.config.secrets import from_environment, is_variable, masked
from tune.config.sweep_config import SETTINGS_FILE, load_sweep_config
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import STUDY_FILE, StudyJournal, StudyStorage
from tune.search.pruners import make_pruner
from tune.search.samplers import make_sampler

__all__ = [
    "METRIC",
    "REPEAT",
    "REPEAT_OF",
    "RETRY_OF",
    "RUN",
    "SECONDS_PER_STEP",
    "check_new_study",
    "open_study",
    "read_storage",
    "read_study",
    "remove_study",
    "trial_folders",
]

METRIC = "val/loss"
SECONDS_PER_STEP = "train/seconds_per_step"  # the objective that is not a loss
# User attributes.
RETRY_OF, REPEAT_OF, REPEAT, RUN = "retry_of", "repeat_of", "repeat", "run"


def open_study(
    folder: Path,
    settings: SweepSettings,
    *,
    create: bool = False,
    epochs: int | None = None,
    trials: int | None = None,
) -> optuna.Study:
    """Open the study of the sweep in ``folder``, with the sampler and the pruner of ``settings``.

    Args:
        create: create the study if it does not exist and the sweep has no trials.
        epochs: epochs of a trial that is not stopped, from which Hyperband derives its brackets; None if unknown.
        trials: number of trials that have a folder; None: those in ``folder``.

    Raises:
        ConfigError: the study does not exist and may not be created, it is empty although trials have folders, or the
            database cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Optuna logs each study and trial at INFO
    trials = len(trial_folders(folder)) if trials is None else trials
    source = _StudySource.find(folder, settings, is_new=create and not trials)
    source.check_exists(create, trials)
    storage = source.open()
    names = optuna.get_all_study_names(storage)
    name = source.study_name(names)
    pruner = make_pruner(settings, epochs)
    if trials and name not in names:
        raise source.lost(f"holds no study {name!r}", trials)
    if create:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            pruner=pruner,
            directions=["minimize"] * len(settings.objectives),
            load_if_exists=True,
        )
        study.set_user_attr("objectives", list(settings.objectives))
    elif name in names:
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    else:
        raise ConfigError(f"{source.title}: holds no study of this sweep")
    known = study.get_trials(deepcopy=False)
    if trials and all(trial.state == TrialState.WAITING for trial in known):
        raise source.lost("holds no trials", trials)
    study.sampler = make_sampler(settings, len(known))
    return study


def check_new_study(folder: Path, settings: SweepSettings) -> None:
    """Check that a database can hold the study of a new sweep, and has none of its name: the two would share trials.

    Raises:
        ConfigError: the name is taken, or the database cannot be reached.
    """
    if settings.storage is None:
        return
    source = _StudySource.find(folder, settings, is_new=True)
    if source.file is not None and not source.file.exists():
        parent = source.file.parent
        if folder.absolute() not in source.file.parents and not parent.is_dir():
            raise ConfigError(f"{source.title}: cannot be created: there is no folder {parent}; create it first")
        return
    name = settings.study_name or folder.name
    if name in optuna.get_all_study_names(source.open()):
        raise ConfigError(
            f"{source.title}: holds a study {name!r} already; take another sweep.study_name, or resume that sweep: "
            "nuanced sweep --resume DIR"
        )


def read_study(folder: Path) -> optuna.Study:
    """Open the study of the sweep in ``folder`` for reading, from the storage that its settings name.

    Raises:
        ConfigError: the study does not exist, or it is empty although the folder holds trials.
    """
    return open_study(folder, _settings(folder))


def read_storage(folder: Path) -> BaseStorage:
    """Open the Optuna storage that holds the study of the sweep in ``folder``.

    Raises:
        ConfigError: the database does not exist, or cannot be reached.
    """
    source = _StudySource.find(folder, _settings(folder), is_new=False)
    source.check_exists(False, len(trial_folders(folder)))
    return source.open()


def remove_study(folder: Path, settings: SweepSettings) -> None:
    """Remove the study of the sweep in ``folder`` from its database, unless a trial has begun.

    Raises:
        ConfigError: the database cannot be reached.
    """
    if settings.storage is None:
        return
    source = _StudySource.find(folder, settings, is_new=False)
    if source.file is not None and not source.file.is_file():
        return
    storage = source.open()
    names = optuna.get_all_study_names(storage)
    if source.study_name(names) in names:
        study = optuna.load_study(study_name=source.study_name(names), storage=storage)
        if all(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
            optuna.delete_study(study_name=study.study_name, storage=storage)


def trial_folders(folder: Path) -> list[int]:
    """Return the numbers of the trials that have a folder in the sweep's ``folder``."""
    return [int(path.name) for path in (folder / "trials").glob("*") if path.name.isdecimal() and path.is_dir()]


def _settings(folder: Path) -> SweepSettings:
    file = folder / SETTINGS_FILE
    return load_sweep_config(file).sweep if file.is_file() else SweepSettings()


@dataclass(frozen=True)
class _StudySource:
    """The journal file or the database that holds the study of a sweep.

    Attributes:
        folder: of the sweep.
        settings: of the sweep.
        url: of the database, with its password; None for a journal file.
        file: of the journal or the SQLite database; None for any other database.
    """

    folder: Path
    settings: SweepSettings
    url: str | None
    file: Path | None

    @classmethod
    def find(cls, folder: Path, settings: SweepSettings, *, is_new: bool) -> "_StudySource":
        """Find where the study lies, or where that of a new sweep will lie.

        Raises:
            ConfigError: the environment variable that holds the URL is not set, or holds no usable URL.
        """
        if settings.storage is None:
            return cls(folder, settings, None, folder / STUDY_FILE)
        url = from_environment(settings.storage, "sweep.storage")
        try:
            named = database_file(url)
            file = None if named is None else Path(os.path.normpath(folder.absolute() / named))
            if named is not None and not is_new:
                file = next((place for place in _places(folder.absolute(), named, settings) if place.exists()), file)
            return cls(folder, settings, database_url(url, file), file)
        except ValueError as error:
            raise ConfigError(f"sweep.storage: {masked(settings.storage)}: {error}") from None

    @property
    def title(self) -> str:
        """The place, for messages: the file, or the URL without its password."""
        if self.url is None:
            return str(self.file)
        place = masked(self.url) if self.file is None else str(self.file)
        variable = f"{self.settings.storage}: " if is_variable(self.settings.storage) else ""
        return f"sweep.storage: {variable}{place}"

    def check_exists(self, create: bool, trials: int) -> None:
        """Check that the file exists, which opening it would create, unless a study without trials may be created.

        Raises:
            ConfigError: it does not.
        """
        if self.file is None or self.file.is_file() or (create and not trials):
            return
        if trials:
            raise self.lost("does not exist", trials)
        if self.url is None:
            raise ConfigError(f"{self.folder}: not the folder of a sweep (it holds no {STUDY_FILE})")
        raise ConfigError(f"{self.title}: does not exist, so it holds no study of this sweep")

    def open(self) -> BaseStorage:
        """Open the journal file or the database, either of which is created if it does not exist.

        Raises:
            ConfigError: the file is damaged, or the database cannot be reached.
        """
        if self.url is None:
            journal = StudyJournal(str(self.file))
            try:
                storage = StudyStorage(journal)
                _check_contents(storage)
                return storage
            except OSError as error:
                raise ConfigError(f"{self.title}: cannot be read: {error.strerror}") from None
            except Exception as error:  # of any type: Optuna applies what it reads without checking it
                reason = f"{type(error).__name__}: {one_line(error)}"
                raise ConfigError(
                    f"{self.title}: is damaged after line {max(journal.line - 1, 0)} ({reason}); put {STUDY_FILE} back "
                    "from a copy, or remove the lines from there on"
                ) from None
        if self.file is not None and self.folder.absolute() in self.file.parents and self.folder.is_dir():
            self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return RDBStorage(self.url)
        except Exception as error:  # of SQLAlchemy, or of the database driver that the URL names
            reason = masked(one_line(error, None))[:200]
            raise ConfigError(f"{self.title}: cannot be opened: {reason}") from None

    def study_name(self, names: list[str]) -> str:
        """Return the name of the sweep's study, which may be one of ``names``: those in the storage.

        The sweep's folder may have been renamed, so the only study of a file in it has any name.
        """
        is_inside = self.file is not None and self.folder.absolute() in self.file.absolute().parents
        only = names[0] if is_inside and len(names) == 1 else None
        return self.settings.study_name or only or self.folder.name

    def lost(self, problem: str, trials: int) -> ConfigError:
        """Return the error for a study that is not where it was, so that finished trials would be ignored."""
        if self.url is None:
            fix = f"put {STUDY_FILE} back from a copy"
        elif self.file is None:
            fix = "name its place with --set sweep.storage=URL, or the study with --set sweep.study_name=NAME"
        else:
            fix = "move it back, or name its place with --set sweep.storage=sqlite:////PATH"
        return ConfigError(
            f"{self.title}: {problem}, but {self.folder} has the folders of {trials} trials; {fix}; to begin again "
            f"without them, move {self.folder / 'trials'} away"
        )


def _check_contents(storage: BaseStorage) -> None:
    """Raise ValueError or TypeError for what Optuna reads and no sweep writes, as a setting out of its range."""
    for study in storage.get_all_studies():
        if {*study.directions} != {StudyDirection.MINIMIZE}:
            raise ValueError(f"the study {study.study_name!r} does not minimise")
        texts: list[Any] = [study.study_name, study.user_attrs]
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            _check_trial(trial, len(study.directions))
            texts += [trial.params, trial.user_attrs, trial.system_attrs]
        json.dumps(texts, ensure_ascii=False).encode()  # no half of a character


def _check_trial(trial: FrozenTrial, objectives: int) -> None:
    trial._validate()
    if trial.values is not None and len(trial.values) != objectives:
        raise ValueError(f"trial {trial.number} has {len(trial.values)} values for {objectives} objectives")
    numbers = [*(trial.values or ()), *trial.intermediate_values.values()]
    numbers += dict(trial.user_attrs.get("metrics", {})).values()
    if wrong := [value for value in numbers if not isinstance(value, int | float | None)]:
        raise ValueError(f"trial {trial.number} has {wrong[0]!r} for a number")
    found = dict(trial.user_attrs.get("params", {}))
    if wrong := [name for name in (*trial.params, *found) if not isinstance(name, str)]:
        raise ValueError(f"trial {trial.number} has {wrong[0]!r} for a setting's name")
    if trial.state == TrialState.COMPLETE and not {"params", "metrics"} <= trial.user_attrs.keys():
        raise ValueError(f"trial {trial.number} is complete and lacks its settings or metrics")


def _places(folder: Path, file: Path, settings: SweepSettings) -> list[Path]:
    """Return where the SQLite database of a sweep that was created earlier may lie, beginning with the best guess."""
    if not file.is_absolute():
        # Sweeps used to keep a relative path, which was relative to the working directory.
        return [folder / file, file.absolute()]
    outputs = Path(settings.outputs)
    moved = moved_into(folder, file, outputs) if outputs.is_absolute() else None
    return [file] if moved is None else [moved, file]  # a folder that was moved or copied takes its database along
