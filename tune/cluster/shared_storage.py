"""Storage that all nodes reach where they share no disk: trials' folders are copied to it, and from it.

A trial then works in a folder of its node and copies what changed after each epoch; whichever node goes on with it
copies it back first. The driver copies the folder of each trial that ended into the sweep's own.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from nuanced_core.errors import ConfigError, DiskError

__all__ = ["EndedTrialCopier", "SharedFolder", "scratch_folder"]

logger = logging.getLogger(__name__)

_PART = ".part"
_COPIERS = 2  # threads of the driver


class SharedFolder:
    """A folder at a path or fsspec URL (``s3://bucket/folder``); it travels to other processes.

    Args:
        setting: that names it, for errors.

    Raises:
        ConfigError: nothing here knows such a URL, or it cannot be reached.
    """

    def __init__(self, place: str, setting: str = "sweep.shared") -> None:
        self._setting = setting
        self._files, self._root = _opened(place.rstrip("/"), setting)
        # Other processes may have another working directory.
        self.place = self._root if "file" in self._files.protocol else place.rstrip("/")
        self._sizes: dict[str, tuple[int, int]] = {}  # of what was pushed: size and time by name

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "setting": self._setting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a connection is of one process

    def child(self, *names: str) -> "SharedFolder":
        """A folder in it."""
        return SharedFolder("/".join([self.place, *names]), self._setting)

    @property
    def parent(self) -> "SharedFolder":
        """The folder that it is in."""
        return SharedFolder(self.place.rpartition("/")[0], self._setting)

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or with no name anything in the folder, as of now.

        Raises:
            DiskError: that cannot be told.
        """
        self._files.invalidate_cache()
        try:
            self._files.info(self._path(name))
        except FileNotFoundError:
            return False
        except Exception as error:  # of whatever library is behind the URL
            raise self._refused("cannot be read", error) from None
        return True

    def names(self) -> list[str]:
        """What lies in the folder, by name; nothing, if that cannot be told."""
        try:
            return [str(path).rpartition("/")[2] for path in self._files.ls(self._root, detail=False, refresh=True)]
        except Exception:
            return []

    def read(self, name: str) -> str | None:
        """A file's text, or None if there is none that can be read."""
        try:
            return str(self._files.read_text(self._path(name), encoding="utf-8"))
        except Exception:
            return None

    def write(self, name: str, text: str) -> None:
        """Write a small file.

        Raises:
            DiskError: it cannot be written.
        """
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.write_text(self._path(name), text, encoding="utf-8")
        except Exception as error:
            raise self._refused("cannot be written", error) from None

    def remove(self, *names: str) -> None:
        """Remove files; what is not there, or cannot be removed, is left."""
        for name in names:
            with suppress(Exception):
                self._files.rm(self._path(name))

    def push(self, local: Path) -> None:
        """Copy what changed in a local folder since it was last pushed or pulled; each file whole or not at all.

        Raises:
            DiskError: something cannot be written.
        """
        for file in sorted(path for path in local.rglob("*") if path.is_file() and path.suffix != _PART):
            name = file.relative_to(local).as_posix()
            stat = file.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if self._sizes.get(name) == state:
                continue
            try:
                self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(file), self._path(name) + _PART)
                self._files.mv(self._path(name) + _PART, self._path(name))
            except Exception as error:
                raise self._refused(f"{name} cannot be written", error) from None
            self._sizes[name] = state

    def pull(self, local: Path) -> None:
        """Make a local folder hold what this one holds; what else was in it is removed.

        Raises:
            DiskError: something cannot be read, or not be written here.
        """
        part = local.with_name(local.name + _PART)
        there = self.exists()
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            found = self._files.find(self._root) if there else []
            names = [path.removeprefix(self._root).lstrip("/") for path in found if not path.endswith(_PART)]
            for name in names:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(self._path(name), str(part / name))
            shutil.rmtree(local, ignore_errors=True)
            part.rename(local)
        except Exception as error:
            raise self._refused("cannot be copied here", error) from None
        stats = {name: (local / name).stat() for name in names}
        self._sizes = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _refused(self, what: str, error: Exception) -> DiskError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return DiskError(f"{self._setting}: {self.place}: {what}: {reason}")


class EndedTrialCopier:
    """Copies the folders of trials that ended into the sweep's folder, behind the driver's back.

    Args:
        shared: folder of the sweep in shared storage.
        folder: of the sweep.
    """

    def __init__(self, shared: SharedFolder, folder: Path) -> None:
        self._shared, self._folder = shared, folder
        self._threads = ThreadPoolExecutor(_COPIERS)

    def fetch(self, number: int) -> None:
        """Begin to copy a trial's folder."""
        self._threads.submit(self._fetch, number)

    def fetch_missing(self, numbers: Iterable[int]) -> None:
        """Begin to copy the folders of those trials that have none here."""
        for number in numbers:
            if not (self._folder / "trials" / str(number)).is_dir():
                self.fetch(number)

    def close(self) -> None:
        """Wait for what is being copied."""
        self._threads.shutdown(wait=True)

    def _fetch(self, number: int) -> None:
        try:
            trial = self._shared.child("trials", str(number))
            if trial.exists():  # a trial that failed at once has left nothing
                trial.pull(self._folder / "trials" / str(number))
        except (ConfigError, DiskError) as error:
            logger.warning("trial %s: its folder stays in shared storage: %s", number, error)


def scratch_folder(place: str, number: int) -> Path:
    """Where a trial works on its node, if its folder is copied to ``place``."""
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"nuanced-speech-{os.getuid()}" / digest / str(number)


def _opened(place: str, setting: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(place)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{setting}: {place}: {' '.join(str(error).split())}; install what it names on all nodes, or take a path"
        ) from None
    except Exception as error:
        raise ConfigError(f"{setting}: {place}: cannot be reached: {' '.join(str(error).split())[:200]}") from None
