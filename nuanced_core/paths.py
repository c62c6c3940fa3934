"""Paths as users write them."""

import os
from pathlib import Path

__all__ = ["user_path"]


def user_path(text: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced by that home folder.

    Settings keep paths as they are written; each is expanded where it is used. The ``~`` of an unknown user is kept, so
    that the path is reported as missing. A path without a name of its own (``.``, ``..``) becomes absolute, so that it
    has one.
    """
    path = Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises RuntimeError for an unknown user)
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))  # noqa: PTH100 (resolve follows links)
