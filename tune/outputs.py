"""The folder that a sweep or a run leaves: checked before anything is done, then made whole."""

import datetime
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from nuanced_core.config import RunConfig, read_yaml, write_yaml
from nuanced_core.errors import ConfigError, DiskError
from tune.config import SweepSettings

__all__ = [
    "BYTES_PER_TRIAL",
    "Prepare",
    "Prepared",
    "check_disk",
    "create_folder",
    "disk_of_trials",
    "free_bytes",
    "model_hashes",
    "new_folder",
    "origin",
    "recorded_models",
    "rewrite",
    "versions",
]

# Two checkpoints with Adam's state of an encoder of 10 million weights, and sound and curves; and these alone.
BYTES_PER_TRIAL = 300 * 2**20
BYTES_WITHOUT_CHECKPOINTS = 20 * 2**20

_PACKAGES = ("nuanced-speech", "kokoro", "misaki", "numpy", "openai-whisper", "optuna", "ray", "torch")


def new_folder(outputs: Path, name: str) -> Path:
    """The folder ``name`` in ``outputs``, which is yet to be made.

    Raises:
        ConfigError: ``name`` is not the name of a folder, or the folder exists.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise ConfigError(f"--name {name!r}: not the name of a folder")
    folder = outputs / name
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: exists already; give another --name (NAME=… of make), or remove it")
    return folder


OUTPUTS_FIX = "choose another --outputs, run fewer trials, or keep fewer (sweep.keep_trials)"


def check_disk(folder: Path, needed: int, fix: str = OUTPUTS_FIX) -> None:
    """Refuse a disk that cannot hold ``needed`` bytes in ``folder``, which may not exist yet.

    Args:
        fix: what else than to free some space would help.

    Raises:
        DiskError: too little is free, or it cannot be written.
    """
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise DiskError(f"{there}: not a folder that can be written; {fix}")
    free = free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"{there}: {free / 2**30:.1f} GiB are free, {needed / 2**30:.1f} GiB may be needed; free some, {fix}"
        )


def disk_of_trials(settings: SweepSettings) -> int:
    """Bytes that a sweep's trials may need; of one whose budget is time, those of one trial."""
    trials = settings.trials or 1
    kept = min(trials, settings.keep_trials or trials)
    return kept * BYTES_PER_TRIAL + (trials - kept) * BYTES_WITHOUT_CHECKPOINTS


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of ``folder``, which may not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def create_folder(folder: Path, settings_file: str, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` with its settings in it, under another name first: it exists whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        write_yaml(part / settings_file, settings)
        part.rename(folder)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Prepared(Protocol):
    """What a run's preparation leaves: its models, which know their files."""

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each model file by what it is, and what else results rest on."""


# Fetches the models of some runs and renders their data, so that trials find both; may say what it does.
Prepare = Callable[[Sequence[RunConfig], Callable[[str], None]], Sequence[Prepared]]


def recorded_models(settings_file: Path) -> dict[str, str]:
    """SHA-256 by model file, as ``origin`` noted them when the sweep began.

    Raises:
        ConfigError: the file cannot be read.
    """
    record = read_yaml(settings_file).get("record") or {}
    return dict(record.get("models") or {})


def rewrite(settings_file: Path, settings: Mapping[str, Any]) -> None:
    """Put other settings into a sweep's file, and leave what is recorded there of its beginning.

    Raises:
        DiskError: it cannot be written.
    """
    write_yaml(settings_file, {**settings, "record": read_yaml(settings_file).get("record")})


def model_hashes(prepared: Sequence[Prepared]) -> dict[str, str]:
    """SHA-256 of all model files of some runs, by what they are."""
    models: dict[str, str] = {}
    for one in prepared:
        models |= one.hashes()
    return models


def origin(models: Mapping[str, str]) -> dict[str, Any]:
    """With what results are made, and when: ``started`` (UTC), ``git_commit``, ``versions``, ``models``."""
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _commit(),
        "versions": versions(),
        "models": dict(models),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that results depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def _commit() -> str | None:
    """With ``-dirty`` behind it where files differ from the commit."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
