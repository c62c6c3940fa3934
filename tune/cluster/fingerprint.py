"""TODO."""

import hashlib
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nuanced_core.weights.store import cached

__all__ = ["NodeFingerprint", "node_fingerprint", "versions"]

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("nuanced_core", "tune")


@dataclass(frozen=True)
class NodeFingerprint:
    """What has to be the same on all nodes."""

    code: str  # digest of the project's own modules and sentences
    python: str
    versions: dict[str, str]
    models: dict[str, str]  # SHA-256 of the model files that are there, by name


def node_fingerprint() -> NodeFingerprint:
    """Of the machine that this runs on."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted(path for path in (_ROOT / package).rglob("*") if path.suffix in (".py", ".txt")):
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    models = {file.name: file.sha256 for file in cached()}
    return NodeFingerprint(digest.hexdigest()[:12], platform.python_version(), versions(), models)


def fingerprint_difference(ours: NodeFingerprint, its: NodeFingerprint) -> str | None:
    if its.python.rpartition(".")[0] != ours.python.rpartition(".")[0]:
        return f"has Python {its.python}, the driver {ours.python}; install the same there"
    for package, version in ours.versions.items():
        other = its.versions.get(package)
        if other != version:
            return f"has {package} {other}, the driver {version}; run 'make setup' of the same commit there"
    if its.code != ours.code:
        return f"has other code ({its.code}, the driver {ours.code}); check the same commit out there"
    for name, digest in ours.models.items():
        other = its.models.get(name, digest)
        if other != digest:
            return f"has another {name} (SHA-256 {other[:12]}, the driver {digest[:12]}); fetch it again on one of them"
    return None


def versions() -> dict[str, str]:
    """The installed versions of the packages that results depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
