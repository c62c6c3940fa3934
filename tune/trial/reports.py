"""TODO."""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ERROR_FILE", "unpack_scalars"]

# In the folder of a trial that met an unexpected error: the reason in one line, then the traceback.
ERROR_FILE = "error.txt"
SCALARS = "scalars"


def unpack_scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's result with its scalars by name; Ray, which keeps statistics of each number, has them as text."""
    return {**result, **json.loads(result.get(SCALARS, "{}"))}


def write_error_file(folder: Path, error: Exception) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{reason}\n\n{''.join(traceback.format_exception(error))}"
    (folder / ERROR_FILE).write_text(text, encoding="utf-8")
