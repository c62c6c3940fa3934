"""Where a sweep lies: its folder, settings file, driver lock, study, and the storage of its trials' folders."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nuanced_core.config.settings import result_settings
from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.errors import ConfigError, DiskError
from nuanced_core.paths import user_path
from nuanced_core.training.run import LAST
from tune.cluster.disk import check_disk, trials_disk_bytes
from tune.cluster.shared_storage import SharedFolder
from tune.config.secrets import check_no_secrets, has_secret, masked
from tune.config.sweep_config import SETTINGS_FILE, SweepConfig, parse_sweep, with_absolute_overrides
from tune.config.sweep_settings import SweepSettings
from tune.loggers.run_loggers import flat_settings
from tune.search.journal import repair_journal
from tune.search.study import check_new_study, open_study, remove_study, trial_folders
from tune.sweep.lock import DriverLock
from tune.sweep.record import create_folder, new_folder, provenance

__all__ = ["SweepPlace"]

logger = logging.getLogger(__name__)


class SweepPlace:
    """The place of one sweep, from its first check to the end of its driver, which leaves the context.

    Made by ``new`` or ``existing``. From ``existing`` or ``open`` on, this process holds the driver lock. What ``open``
    created is removed if an error ends the context before the first trial, so that the name is free again.

    Attributes:
        folder: of the sweep.
        saved: the settings in the folder's ``sweep.yaml``; None while there is none.
    """

    def __init__(self, folder: Path, settings: SweepSettings, data: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.saved: SweepConfig | None = None
        self._data = dict(data or {})
        self._lock: DriverLock | None = None
        self._created: SweepConfig | None = None  # settings of a sweep that this process began
        self._study: optuna.Study | None = None
        self._shared = settings.shared
        self._storage: SharedFolder | None = None

    @property
    def is_shared(self) -> bool:
        """Whether ``storage`` is shared storage."""
        return self._shared is not None

    @property
    def storage(self) -> SharedFolder:
        """The storage of the trials' folders and the stop file: the sweep's folder, or that in ``sweep.shared``.

        Raises:
            ConfigError: the shared storage cannot be reached.
        """
        if self._storage is None:
            self._storage = (
                SharedFolder(str(self.folder), "sweep.outputs")
                if self._shared is None
                else SharedFolder(self._shared).child(self.folder.name)
            )
        return self._storage

    @classmethod
    def new(cls, settings: SweepSettings, name: str) -> "SweepPlace":
        """Check that a sweep can begin in the folder ``name`` of its outputs, without writing anything.

        Raises:
            ConfigError: the folder, its counterpart in shared storage, or the study's name is taken.
            DiskError: the disk is too full, or the folder cannot be written.
        """
        # A file with the record of another sweep may hold a password: passwords were not always refused.
        check_no_secrets({"sweep": {"storage": settings.storage, "shared": settings.shared}}, "settings")
        folder = new_folder(user_path(settings.outputs), name)
        check_new_study(folder, settings)
        place = cls(folder, settings)
        if place.is_shared and place.storage.exists():
            location = place.storage.location
            raise ConfigError(f"sweep.shared: {location}: exists already; give another --name, or remove it")
        check_disk(folder, trials_disk_bytes(settings))
        return place

    @classmethod
    def existing(cls, folder: Path) -> "SweepPlace":
        """Lock the folder of a sweep and read its settings.

        Raises:
            ConfigError: the folder holds no sweep, or another driver is at work on it.
        """
        folder = user_path(folder)
        file = folder / SETTINGS_FILE
        if not file.is_file():
            raise ConfigError(f"{folder}: not the folder of a sweep (it holds no {SETTINGS_FILE})")
        lock = DriverLock(folder)
        try:
            data = read_yaml(file)
            saved = parse_sweep(data, str(file))
            place = cls(folder, saved.sweep, data)
        except BaseException:
            lock.close()
            raise
        place.saved, place._lock = saved, lock
        return place

    def __enter__(self) -> "SweepPlace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None and self.is_unused:
            self._remove()
        if self._lock is not None:
            self._lock.close()

    @property
    def is_unused(self) -> bool:
        """Whether this process began the sweep, and no trial has been started."""
        if self._created is None:
            return False
        try:
            trials = [] if self._study is None else self._study.get_trials(deepcopy=False)
            return not self._trials_begun() and all(trial.state == TrialState.WAITING for trial in trials)
        except Exception:  # of a database that cannot be reached any more: keep what may be of use
            return False

    def _trials_begun(self) -> set[int]:
        """Return the numbers of the trials that have a folder, here or in shared storage."""
        begun = set(trial_folders(self.folder))
        if self.is_shared:
            begun |= {int(name) for name in self.storage.child("trials").names() if name.isdecimal()}
        return begun

    def _remove(self) -> None:
        """Remove what ``open`` and ``open_study`` created."""
        assert self._created is not None
        with suppress(Exception):  # the error that ends the sweep is the one to report
            remove_study(self.folder, self._created.sweep)
        if self.is_shared:
            self.storage.remove_folder()
        shutil.rmtree(self.folder, ignore_errors=True)

    def settings_with(self, overrides: Sequence[str]) -> SweepConfig:
        """Return the saved settings with overrides, checked to be comparable with the saved ones.

        Raises:
            ConfigError: an override is wrong, the trials so far could not be compared or learned from, or shared
                storage does not have them.
        """
        assert self.saved is not None
        overrides = with_absolute_overrides(overrides, self.folder, self.saved)
        config = parse_sweep(self._data, str(self.folder / SETTINGS_FILE), overrides)
        config.check_can_continue(self.saved)
        self._shared, self._storage = config.sweep.shared, None
        if self._shared != self.saved.sweep.shared and not self.storage.exists():
            raise ConfigError(
                f"sweep.shared: {self.storage.location}: does not exist, so unfinished trials would not find their "
                f"checkpoints; keep the previous value, or copy {masked(str(self.saved.sweep.shared))} there first"
            )
        for name, value in (("storage", config.sweep.storage), ("shared", config.sweep.shared)):
            if value is not None and has_secret(value):
                logger.warning(
                    "%s: sweep.%s holds a password; to remove it from the file, export that URL as an environment "
                    "variable, such as NAME, and resume with --set sweep.%s=env:NAME",
                    self.folder / SETTINGS_FILE,
                    name,
                    name,
                )
        return config

    def open(self, config: SweepConfig, models: Mapping[str, str]) -> None:
        """Create and lock the folder of a new sweep, with its settings and their provenance.

        An existing sweep stays as it is, if the models are those that it began with.

        Args:
            models: SHA-256 by model file.

        Raises:
            ConfigError: a SHA-256 differs from the recorded one.
            DiskError: the folder cannot be written.
        """
        if self.saved is not None:
            self._check_models(models)
            return
        self._data = {**config.as_dict(), "record": provenance(models)}
        create_folder(self.folder, SETTINGS_FILE, self._data)
        self._created = config
        self._lock = DriverLock(self.folder)
        self.saved = config

    def _check_models(self, models: Mapping[str, str]) -> None:
        record = self._data.get("record") or {}
        recorded = record.get("models") or {} if isinstance(record, dict) else None
        if not isinstance(recorded, dict):
            raise ConfigError(
                f"{self.folder / SETTINGS_FILE}: record: {record!r} is not what a sweep writes there; restore it, or "
                "remove it to accept the model files as they are now"
            )
        changed = sorted(name for name, digest in recorded.items() if models.get(name, digest) != digest)
        if changed:
            raise ConfigError(
                f"{self.folder}: {', '.join(changed[:3])}: not the file that the sweep began with; fetch that one "
                "again (models.source), or begin a new sweep"
            )

    def save(self, config: SweepConfig) -> None:
        """Write changed settings to the settings file and keep the record of the sweep's beginning.

        Raises:
            DiskError: the file cannot be written.
        """
        if config != self.saved:
            write_yaml(self.folder / SETTINGS_FILE, {**config.as_dict(), "record": self._data.get("record")})
            self.saved = config

    def open_study(self, config: SweepConfig) -> optuna.Study:
        """Open or create the study, after repairing what a killed driver left half-written.

        Raises:
            DiskError: the study's file cannot be repaired, or shared storage cannot be read.
            ConfigError: the database cannot be reached, or the study or shared storage does not have the trials that
                the sweep began.
        """
        assert self.saved is not None
        repair_journal(self.folder)
        begun = self._trials_begun()
        has_moved = config.sweep.storage != self.saved.sweep.storage
        study = open_study(
            self.folder, config.sweep, create=not has_moved, epochs=config.run.train.epochs, trials=len(begun)
        )
        self._study = study
        known = study.get_trials(deepcopy=False)
        if has_moved and begun and max(begun) >= len(known):
            raise ConfigError(
                f"sweep.storage: {masked(str(config.sweep.storage))}: its study {study.study_name!r} has {len(known)} "
                f"trials, but {self.folder} began trial {max(begun)}: it is another study; name this sweep's"
            )
        in_flight = [
            t.number for t in known if t.state == TrialState.RUNNING and (t.last_step or "epochs" in t.user_attrs)
        ]
        self._check_run_of(known, config)
        if self.is_shared and in_flight and not self.storage.exists():
            raise ConfigError(
                f"sweep.shared: {self.storage.location}: does not exist, but trial {in_flight[0]} is to continue from "
                "its checkpoint there; move or rename it back, or name its place with --set sweep.shared=PLACE"
            )
        return study

    def _check_run_of(self, known: Sequence[FrozenTrial], config: SweepConfig) -> None:
        """Check that the unfinished trials can continue from their checkpoints, which belong to the saved run."""
        assert self.saved is not None
        old, new = (flat_settings(result_settings(c.run.model_dump(mode="json"))) for c in (self.saved, config))
        changed = [name for name, value in new.items() if old.get(name) != value]
        if not changed:
            return
        running = [t.number for t in known if t.state == TrialState.RUNNING]
        held = [number for number in running if self.storage.exists(f"trials/{number}/{LAST}")]
        if held:
            raise ConfigError(
                f"{changed[0]}: was {old.get(changed[0])}, would be {new[changed[0]]}: trial {held[0]} is unfinished "
                f"and continues with its own settings; resume without the change and with --trials {len(known)} first, "
                "which ends what is unfinished"
            )

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn an OSError of the study's storage into a DiskError of one line."""
        try:
            yield
        except OSError as error:
            raise DiskError(f"{self.folder}: the study cannot be written: {error.strerror}; free some disk") from None

    @property
    def trials_folder(self) -> Path:
        """The absolute path of the folder that holds the trials' folders."""
        return self.folder.absolute() / "trials"
