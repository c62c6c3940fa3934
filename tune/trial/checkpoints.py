"""Checkpoints of trials: selecting the best one of a folder, and removing those that the settings do not keep."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from nuanced_core.config.yaml_files import read_yaml
from nuanced_core.errors import ConfigError
from nuanced_core.training.run import BEST, LAST
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import SETTINGS_FILE
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import STUDY_FILE
from tune.search.results import Ending, best_trial
from tune.search.study import read_study

__all__ = ["CheckpointKeeper", "SelectedCheckpoint", "best_checkpoint", "recorded_hashes"]

RECORD_FILE = "record.yaml"  # of a single run; a sweep's is a part of its settings file


@dataclass(frozen=True)
class SelectedCheckpoint:
    """A checkpoint file, with its trial and its scores by name."""

    file: Path
    facts: dict[str, Any]


def best_checkpoint(folder: Path, number: int | None = None) -> SelectedCheckpoint:
    """Return the best checkpoint of a sweep's best trial, of its trial ``number``, or of a single run.

    Raises:
        ConfigError: ``folder`` holds neither a sweep nor a run, or the trial has no checkpoint.
    """
    if (folder / BEST).is_file() and not any((folder / name).exists() for name in (STUDY_FILE, SETTINGS_FILE)):
        if number is not None:
            raise ConfigError(f"{folder}: one run, not a sweep; leave --trial out")
        return SelectedCheckpoint(folder / BEST, {"run": folder.name})
    trial = _trial(folder, number)
    file = folder / "trials" / str(trial.number) / BEST
    if not file.is_file():
        raise ConfigError(f"{file}: no such checkpoint; choose another trial with --trial")
    held_out = ("val/", "baseline/", "oracle/")
    metrics = {name: v for name, v in trial.user_attrs.get("metrics", {}).items() if name.startswith(held_out)}
    return SelectedCheckpoint(file, {"sweep": folder.name, "trial": trial.number, **metrics})


def recorded_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the model files by role that a sweep or a run was started with; empty: not recorded."""
    for file, path in ((folder / SETTINGS_FILE, ("record", "models")), (folder / RECORD_FILE, ("models",))):
        found: Any = read_yaml(file) if file.is_file() else None
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return {str(role): str(digest) for role, digest in found.items()}
    return {}


def _trial(folder: Path, number: int | None) -> FrozenTrial:
    study = read_study(folder)
    trials = study.get_trials(deepcopy=False)
    if number is None:
        best = best_trial(study)
        if best is None:
            raise ConfigError(f"{folder}: no trial is complete yet; name one with --trial")
        return best
    if number not in range(len(trials)):
        raise ConfigError(f"{folder}: no trial {number}; it has {len(trials)}, numbered from 0")
    return trials[number]


class CheckpointKeeper:
    """Removes checkpoints of ended trials, as ``sweep.keep_checkpoints`` and ``sweep.keep_trials`` say.

    Args:
        folders: those that hold the sweep's ``trials`` folder.
        complete: value and number of the trials that are already complete.
    """

    def __init__(
        self, settings: SweepSettings, folders: Sequence[SharedFolder], complete: Sequence[tuple[float, int]] = ()
    ) -> None:
        self._settings, self._folders = settings, folders
        self._ranked = sorted(complete)

    def note(self, number: int, ending: Ending) -> None:
        """Handle a trial's end; an interrupted trial has not ended and keeps its checkpoints."""
        if ending.state == "interrupted":
            return
        most = self._settings.keep_trials
        if self._settings.keep_checkpoints == "best":
            self._remove(number, LAST)
        if most is None:
            return
        if ending.state != "complete" or ending.value is None:
            self._remove(number, BEST, LAST)
            return
        insort(self._ranked, (ending.value, number))
        for _, worse in self._ranked[most:]:
            self._remove(worse, BEST, LAST)
        del self._ranked[most:]

    def _remove(self, number: int, *files: Path) -> None:
        for folder in self._folders:
            folder.remove(*(f"trials/{number}/{file.as_posix()}" for file in files))
