"""The folder of a sweep or of a single run: its name checked, created atomically, with a record of its origin."""

import datetime
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuanced_core.config.yaml_files import write_yaml
from nuanced_core.errors import ConfigError, DiskError
from tune.cluster.fingerprint import package_versions

__all__ = ["create_folder", "new_folder", "provenance"]


def new_folder(outputs: Path, name: str) -> Path:
    """Return the path of the folder ``name`` in ``outputs``, without creating it.

    Raises:
        ConfigError: ``name`` is not the name of a folder, or the folder exists.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise ConfigError(f"--name {name!r}: not the name of a folder")
    try:
        str(outputs / name).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{str(outputs / name)!r}: holds bytes that are not UTF-8; take another name") from None
    folder = outputs / name
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder}: exists already; give another --name (NAME=… of make), or remove it")
    return folder


def create_folder(folder: Path, settings_file: str, settings: Mapping[str, Any]) -> None:
    """Create ``folder`` with its settings file, under a temporary name first: it exists whole or not at all.

    Raises:
        DiskError: the folder cannot be written.
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


def provenance(models: Mapping[str, str]) -> dict[str, Any]:
    """Return what results depend on beside the settings: ``started`` (UTC), ``git_commit``, ``versions``, ``models``.

    Args:
        models: SHA-256 by model file.
    """
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "versions": package_versions(),
        "models": dict(models),
    }


def _git_commit() -> str | None:
    """The commit of this code, followed by ``-dirty`` if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
