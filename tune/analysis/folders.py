"""Where the folder of a trial can be read: in the sweep's folder, or on the disk that ``sweep.shared`` names."""

import logging
from pathlib import Path

from nuanced_core.errors import NuancedError
from tune.cluster.shared_storage import SharedFolder

__all__ = ["TrialFolders"]

logger = logging.getLogger(__name__)


class TrialFolders:
    """The trials' folders of a sweep.

    Args:
        folder: of the sweep.
        shared: the setting ``sweep.shared``.
    """

    def __init__(self, folder: Path, shared: str | None) -> None:
        self._folder = folder
        self._shared = None if shared is None else _disk_path(shared, folder.name)

    def of(self, number: int, *, has_ended: bool) -> Path:
        """Return the folder of a trial, which need not exist.

        A trial works in shared storage until it has ended; then its folder is copied to the sweep's.
        """
        places = [root / "trials" / str(number) for root in (self._folder, self._shared) if root is not None]
        found = [place for place in (places if has_ended else reversed(places)) if place.is_dir()]
        return found[0] if found else places[0]


def _disk_path(shared: str, name: str) -> Path | None:
    """Return a sweep's folder in shared storage if that is on a disk; None if it cannot be read directly."""
    try:
        location = SharedFolder(shared).child(name).location
    except NuancedError as error:  # the variable that names it is not set here, for example
        logger.warning("trials that have not ended are left out: %s", error)
        return None
    return Path(location) if location.startswith("/") else None
