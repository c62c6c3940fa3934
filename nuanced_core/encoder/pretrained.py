"""Reading of an exported encoder: a folder, or a model on the Hugging Face hub, checked before it is used.

``config.json`` holds the settings, and under ``sha256`` the hash of the weights and, if it is known, of the Kokoro that
the styles are of, whose source is under ``sources``. Folders of earlier versions have neither and are loaded unchecked.
Weights are safetensors: nothing is unpickled.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from nuanced_core.errors import ConfigError, WeightsError, one_line
from nuanced_core.hashing import hash_bytes
from nuanced_core.paths import user_path

__all__ = [
    "CONFIG_FILE",
    "KOKORO",
    "WEIGHTS_FILE",
    "ModelFile",
    "ModelFiles",
    "Pretrained",
    "check_kokoro",
    "check_models",
    "is_hub_id",
    "pretrained_folder",
    "read_pretrained",
]

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
KOKORO = "kokoro"  # the key in ``sha256`` of the Kokoro that the styles are of
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDERS = ("models", "outputs")  # that the documentation uses: models/default is missing, not on the hub
# Sources whose files are checked against the manifest: both are Kokoro-82M v1.0, in different files.
_PUBLISHED = ("hub", "packages")


class ModelFile(Protocol):
    """A model's file: its hash, and where it is from."""

    @property
    def sha256(self) -> str:
        """SHA-256."""

    @property
    def source(self) -> str:
        """Source: hub, packages or folder."""


class _WhisperFile(ModelFile, Protocol):
    @property
    def name(self) -> str: ...


class ModelFiles(Protocol):
    """The model files that an encoder is used with; ``ModelSet`` has them."""

    @property
    def kokoro_files(self) -> ModelFile:
        """Kokoro."""

    @property
    def whisper_file(self) -> _WhisperFile:
        """Whisper."""


@dataclass(frozen=True)
class Pretrained:
    """What an exported folder holds."""

    config: dict[str, Any]  # of ``config.json``
    weights: dict[str, Tensor]


def is_hub_id(place: str | Path) -> bool:
    """Return whether ``place`` has the form of a model on the hub, OWNER/NAME, and is no path here.

    Missing folders in ``models`` and ``outputs`` are paths.
    """
    owner, _, _ = str(place).partition("/")
    return _HUB_ID.fullmatch(str(place)) is not None and owner not in _FOLDERS and not user_path(place).exists()


def pretrained_folder(place: str | Path, revision: str | None = None) -> Path:
    """Return the folder of an exported encoder, downloaded first if ``place`` is OWNER/NAME on the hub.

    Args:
        revision: branch, tag or commit on the hub.

    Raises:
        WeightsError: it cannot be downloaded.
    """
    if not is_hub_id(place):
        return user_path(place)
    from huggingface_hub import snapshot_download

    try:
        # At most these two files are wanted, and none that could hold code.
        found = snapshot_download(str(place), revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE])
    except Exception as error:  # the types depend on the HTTP library that huggingface_hub uses
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix("Got: ")[:200]
        raise WeightsError(
            f"{place}: no such file {place}/{CONFIG_FILE}, and it cannot be had from the Hugging Face hub ({reason}); "
            "give a folder that 'nuanced export' wrote, or the OWNER/NAME of one on the hub"
        ) from None
    return Path(found)


def read_pretrained(folder: Path) -> Pretrained:
    """Read an exported folder, and check its weights against the hash that it holds, if there is one.

    Raises:
        WeightsError: a file is missing or cut off, or the weights are not those that were exported.
        ConfigError: ``config.json`` is not that of an export.
    """
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for file in (config_file, weights_file):
        if not file.is_file():
            raise WeightsError(f"{file}: no such file; give a folder that 'nuanced export' wrote")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        expected = config.get("sha256", {}).get(WEIGHTS_FILE)
        _ = config["style_encoder"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{config_file}: not a StyleEncoder's configuration: {error!r}") from None
    try:
        data = weights_file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{weights_file}: cannot be read: {error.strerror}") from None
    found = hash_bytes(data)
    if expected is not None and found != expected:
        raise WeightsError(
            f"{weights_file}: SHA-256 {found[:12]} ({len(data)} bytes) is not {str(expected)[:12]} of {CONFIG_FILE}: "
            "cut off or changed; copy or download the folder again"
        )
    try:
        return Pretrained(config, load(data))
    except SafetensorError as error:
        raise WeightsError(
            f"{weights_file}: does not fit {CONFIG_FILE}: cut off, or no safetensors file ({one_line(error)})"
        ) from None


def check_models(place: str | Path, config: Mapping[str, Any], models: ModelFiles) -> None:
    """Check that the models to be used with an exported encoder are those that it belongs to.

    Args:
        place: the folder, for errors.
        config: its ``config.json``.

    Raises:
        WeightsError: Whisper or Kokoro is another one.
    """
    wanted = config["style_encoder"]["whisper"]
    if models.whisper_file.name != wanted:
        raise WeightsError(
            f"{place}: reads the features of Whisper {wanted}, not of {models.whisper_file.name}; "
            f"set models.whisper={wanted}"
        )
    check_kokoro(place, config, models.kokoro_files)


def check_kokoro(place: str | Path, config: Mapping[str, Any], kokoro: ModelFile) -> None:
    """Check that a Kokoro is the one that an exported encoder's styles are of, if ``config`` has its hash.

    The file from the hub and the one converted from packages are both checked when they are fetched; both are
    Kokoro-82M v1.0 and fit one another. If the source is not known, another one of the two is a warning.

    Raises:
        WeightsError: it is another one.
    """
    expected = config.get("sha256", {}).get(KOKORO)
    if expected is None or expected == kokoro.sha256:
        return
    source = config.get("sources", {}).get(KOKORO)
    if kokoro.source in _PUBLISHED and (source is None or source in _PUBLISHED):
        if source is None:
            logger.warning("%s: its Kokoro has SHA-256 %s, the one in use another", place, str(expected)[:12])
        return
    raise WeightsError(
        f"{place}: its styles are of the Kokoro with SHA-256 {str(expected)[:12]}, but the one in use (source "
        f"{kokoro.source}) has {kokoro.sha256[:12]}; use the Kokoro that it was trained with (models.source)"
    )
