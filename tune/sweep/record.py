"""The folder that a sweep or a run leaves: checked before anything is done, then made whole."""

import datetime
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.errors import ConfigError, DiskError
from tune.cluster.fingerprint import versions

__all__ = ["create_folder", "new_folder", "provenance", "recorded_models", "rewrite"]

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


def recorded_models(settings_file: Path) -> dict[str, str]:
    """SHA-256 by model file, as ``provenance`` noted them when the sweep began.

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


def provenance(models: Mapping[str, str]) -> dict[str, Any]:
    """With what results are made, and when: ``started`` (UTC), ``git_commit``, ``versions``, ``models``."""
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _commit(),
        "versions": versions(),
        "models": dict(models),
    }


def _commit() -> str | None:
    """With ``-dirty`` behind it where files differ from the commit."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
