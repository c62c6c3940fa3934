"""Where a sweep lies: its folder, settings file, driver lock, study, and the storage of its trials' folders."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna

from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.errors import ConfigError, DiskError
from nuanced_core.paths import user_path
from tune.cluster.disk import check_disk, trials_disk_bytes
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import SETTINGS_FILE, SweepConfig, parse_sweep
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import repair_journal
from tune.search.study import check_new_study, open_study
from tune.sweep.lock import DriverLock
from tune.sweep.record import create_folder, new_folder, provenance

__all__ = ["SweepPlace"]


class SweepPlace:
    """The place of one sweep, from its first check to the end of its driver, which leaves the context.

    Made by ``new`` or ``existing``. From ``existing`` or ``open`` on, this process holds the driver lock.

    Attributes:
        folder: of the sweep.
        storage: holds the trials' folders and the stop file: the sweep's folder, or its counterpart in
            ``sweep.shared``.
        is_shared: whether ``storage`` is shared storage.
        saved: the settings in the folder's ``sweep.yaml``; None while there is none.
    """

    def __init__(self, folder: Path, settings: SweepSettings, data: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.saved: SweepConfig | None = None
        self._data = dict(data or {})
        self._lock: DriverLock | None = None
        self.is_shared = settings.shared is not None
        self.storage = (
            SharedFolder(str(folder), "sweep.outputs")
            if settings.shared is None
            else SharedFolder(settings.shared).child(folder.name)
        )

    @classmethod
    def new(cls, settings: SweepSettings, name: str) -> "SweepPlace":
        """Check that a sweep can begin in the folder ``name`` of its outputs, without writing anything.

        Raises:
            ConfigError: the folder, its counterpart in shared storage, or the study's name is taken.
            DiskError: the disk is too full, or the folder cannot be written.
        """
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
        if self._lock is not None:
            self._lock.close()

    def settings_with(self, overrides: Sequence[str]) -> SweepConfig:
        """Return the saved settings with overrides, checked to be comparable with the saved ones.

        Raises:
            ConfigError: an override is wrong, or the trials so far could not be compared or learned from.
        """
        assert self.saved is not None
        config = parse_sweep(self._data, str(self.folder / SETTINGS_FILE), overrides)
        config.check_can_continue(self.saved)
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
            DiskError: the study's file cannot be repaired.
            ConfigError: the database cannot be reached.
        """
        repair_journal(self.folder)
        return open_study(self.folder, config.sweep, create=True, epochs=config.run.train.epochs)

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

    def beat(self) -> None:
        """Refresh the driver lock, so that drivers on other machines see that this one is alive."""
        if self._lock is not None:
            self._lock.beat()
