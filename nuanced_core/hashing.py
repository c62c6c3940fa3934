"""SHA-256 digests of files and settings, and the cache keys and random seeds derived from them."""

import hashlib
import json
from pathlib import Path

__all__ = ["content_key", "derived_seed", "hash_bytes", "hash_file"]

KEY_FORMAT = "1"  # part of every key: raise it when the contents of all cache entries change
_BLOCK_BYTES = 1 << 20


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def content_key(*parts: object) -> str:
    """Return 64 hexadecimal digits that depend on all of the parts, which must be JSON-serializable."""
    return hash_bytes(json.dumps([KEY_FORMAT, *parts]).encode())


def derived_seed(*parts: object) -> int:
    """Return a random seed of 31 bits that depends on all of the parts, which must be JSON-serializable."""
    return int(content_key(*parts)[:8], 16) >> 1
