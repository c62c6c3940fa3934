"""How a trial's process reports to the driver: scalars packed as text, and a file for unexpected errors."""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune.config.secrets import masked

__all__ = ["ERROR_FILE", "pack_scalars", "raise_without_secrets", "unpack_scalars", "write_error_file"]

# In the folder of a trial that met an unexpected error: the reason in one line, then the traceback.
ERROR_FILE = "error.txt"
_SCALARS = "scalars"


def pack_scalars(scalars: Mapping[str, float]) -> dict[str, str]:
    """Return scalars as one text entry of a Ray result: Ray keeps statistics of every number for the whole sweep."""
    return {_SCALARS: json.dumps(scalars)}


def unpack_scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Ray result with the scalars of ``pack_scalars`` as entries of their own."""
    return {**result, **json.loads(result.get(_SCALARS, "{}"))}


def raise_without_secrets(error: Exception) -> None:
    """Raise a RuntimeError in place of an error whose text or traceback holds passwords, with these masked."""
    text = "".join(traceback.format_exception(error))
    if masked(text) != text:
        raise RuntimeError(masked(f"{type(error).__name__}: {error}")) from None


def write_error_file(folder: Path, error: Exception) -> None:
    """Write an unexpected error to the trial's folder, so that the driver can report its reason."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{reason}\n\n{''.join(traceback.format_exception(error))}"
    (folder / ERROR_FILE).write_text(masked(text), encoding="utf-8")
