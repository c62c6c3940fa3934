"""Fingerprints of nodes: what has to be the same on all of them for their trials to be comparable."""

import hashlib
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nuanced_core.weights.store import cached

__all__ = ["NodeFingerprint", "fingerprint_difference", "node_fingerprint", "package_versions"]

_ROOT = Path(__file__).parents[2]
_SOURCE_FOLDERS = ("nuanced_core", "tune")
# The installed packages that results depend on.
_PACKAGES = ("nuanced-speech", "kokoro", "misaki", "numpy", "openai-whisper", "optuna", "ray", "torch")


@dataclass(frozen=True)
class NodeFingerprint:
    """The software and model files of a node.

    Attributes:
        code: digest of the project's own modules and sentences.
        python: version of Python.
        versions: installed version by package.
        models: SHA-256 by name, of the model files that the node has in its cache.
    """

    code: str
    python: str
    versions: dict[str, str]
    models: dict[str, str]


def node_fingerprint() -> NodeFingerprint:
    """Compute this node's fingerprint."""
    digest = hashlib.sha256()
    for folder in _SOURCE_FOLDERS:
        for file in sorted(path for path in (_ROOT / folder).rglob("*") if path.suffix in (".py", ".txt")):
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    models = {file.name: file.sha256 for file in cached()}
    return NodeFingerprint(digest.hexdigest()[:12], platform.python_version(), package_versions(), models)


def fingerprint_difference(driver: NodeFingerprint, node: NodeFingerprint) -> str | None:
    """Describe the first difference of a node from the driver, with its fix; None if trials can run on the node.

    The patch version of Python may differ, and so may the set of model files: the node fetches what it lacks.
    """
    if node.python.rpartition(".")[0] != driver.python.rpartition(".")[0]:
        return f"has Python {node.python}, the driver {driver.python}; install the same there"
    for package, version in driver.versions.items():
        other = node.versions.get(package)
        if other != version:
            return f"has {package} {other}, the driver {version}; run 'make setup' of the same commit there"
    if node.code != driver.code:
        return f"has other code ({node.code}, the driver {driver.code}); check the same commit out there"
    for name, digest in driver.models.items():
        other = node.models.get(name, digest)
        if other != digest:
            return f"has another {name} (SHA-256 {other[:12]}, the driver {digest[:12]}); fetch it again on one of them"
    return None


def package_versions() -> dict[str, str]:
    """Return the installed version of each package that results depend on, or "not installed"."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
