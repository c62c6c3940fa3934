"""Which checkpoint is meant by the folder of a sweep, or by that of a single run, and which ones are kept."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from nuanced_core.errors import ConfigError
from nuanced_core.training.run import BEST, LAST
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import SETTINGS_FILE
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import STUDY_FILE
from tune.search.ledger import Ending
from tune.search.results import best_trial
from tune.search.study import read_study

__all__ = ["CheckpointKeeper", "SelectedCheckpoint", "best_checkpoint"]


@dataclass(frozen=True)
class SelectedCheckpoint:
    """A checkpoint, and what is known of it: its trial, and its scores by name."""

    file: Path
    facts: dict[str, Any]


def best_checkpoint(folder: Path, number: int | None = None) -> SelectedCheckpoint:
    """The best checkpoint of a sweep's best trial or of its trial ``number``, or of a run without a sweep.

    Raises:
        ConfigError: ``folder`` holds neither, or the trial has no checkpoint.
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
    """Removes the checkpoints that nobody will want: those of trials that ended, as the settings say.

    Args:
        places: folders that hold the trials' folders.
        complete: value and number of the trials that are complete already.
    """

    def __init__(
        self, settings: SweepSettings, places: Sequence[SharedFolder], complete: Sequence[tuple[float, int]] = ()
    ) -> None:
        self._settings, self._places = settings, places
        self._ranked = sorted(complete)

    def note(self, number: int, ending: Ending) -> None:
        """A trial has ended; one that is interrupted has not."""
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
        for _, outdone in self._ranked[most:]:
            self._remove(outdone, BEST, LAST)
        del self._ranked[most:]

    def _remove(self, number: int, *files: Path) -> None:
        for place in self._places:
            place.remove(*(f"trials/{number}/{file.as_posix()}" for file in files))
