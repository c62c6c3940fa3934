"""Storage that all nodes reach where they share no disk: trials' folders are copied to it and back.

A trial then works in a folder on its node and copies what has changed after each epoch; a node that continues the trial
copies the folder back first. The driver copies the folder of each trial that has ended into the sweep's folder.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from nuanced_core.errors import ConfigError, DiskError, one_line
from nuanced_core.paths import user_path
from tune.config.secrets import from_environment, is_variable, masked

__all__ = ["LIVE_MARK", "EndedTrialCopier", "SharedFolder", "scratch_folder"]

logger = logging.getLogger(__name__)

LIVE_MARK = ".live"  # in a trial's folder here that holds its event files alone, since the trial has not ended
_PART = ".part"  # suffix of a file or folder that is being copied
_COPY_THREADS = 2  # of the driver


class SharedFolder:
    """A folder at a path or fsspec URL (``s3://bucket/folder``).

    It can be pickled, but a password in its URL is left out, because Ray writes most of what it pickles to the disk;
    ``in_memory`` passes a folder with its password to other processes.

    Args:
        location: path or URL, or ``env:NAME`` for that in the environment variable NAME.
        setting: the setting that it comes from, for errors.

    Attributes:
        location: path or URL, for messages: without its password.

    Raises:
        ConfigError: no installed package handles such a URL, it cannot be reached, or the environment variable is not
            set.
    """

    def __init__(self, location: str, setting: str = "sweep.shared") -> None:
        self._setting = setting
        url = from_environment(location, setting)
        url = str(user_path(url)) if url.startswith("~") else url
        self._files, self._root = _filesystem(url.rstrip("/"), setting)
        is_local = "file" in self._files.protocol
        if is_local and is_variable(location) and not url.removeprefix("file://").startswith("/"):
            raise ConfigError(
                f"{setting}: {location}: {url}: a relative path, which is another folder in another working directory; "
                "make it absolute"
            )
        # An absolute path: other processes may have another working directory.
        self._url = self._root if is_local else url.rstrip("/")
        self.location = masked(self._url)
        self._copied: dict[str, tuple[int, int]] = {}  # size and mtime_ns by name, when pushed or pulled

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "setting": self._setting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # connections cannot be pickled

    def in_memory(self) -> "SharedFolder":
        """Return this folder in a form that keeps its password when it is pickled, for what Ray keeps in memory alone.

        Those are objects in Ray's object store and arguments of remote functions. Ray writes the environment variables
        of a cluster's processes to its logs, and the state of searchers, schedulers and stoppers to the disk.
        """
        return _FolderInMemory(self._url, self._setting)

    def child(self, *names: str) -> "SharedFolder":
        """Return a folder inside this one."""
        return SharedFolder("/".join([self._url, *names]), self._setting)

    @property
    def parent(self) -> "SharedFolder":
        """The folder that contains this one."""
        return SharedFolder(self._url.rpartition("/")[0], self._setting)

    def exists(self, name: str = "") -> bool:
        """Return whether a file exists now or, without a name, whether the folder does.

        Raises:
            DiskError: the storage cannot be read.
        """
        self._files.invalidate_cache()
        try:
            self._files.info(self._path(name))
        except FileNotFoundError:
            return False
        except Exception as error:  # the type depends on the package that handles the URL
            raise self._disk_error("cannot be read", error) from None
        return True

    def names(self) -> list[str]:
        """Return the names of the folder's entries; an empty list if they cannot be read."""
        try:
            return [str(path).rpartition("/")[2] for path in self._files.ls(self._root, detail=False, refresh=True)]
        except Exception:
            return []

    def read(self, name: str) -> str | None:
        """Return a file's text; None if it does not exist or cannot be read."""
        try:
            return str(self._files.read_text(self._path(name), encoding="utf-8"))
        except Exception:
            return None

    def read_from(self, name: str, start: int) -> bytes:
        """Return what a file holds from the byte ``start`` on; nothing if it does not exist or is not so long.

        Raises:
            DiskError: it cannot be read.
        """
        self._files.invalidate_cache()
        try:
            if self._files.info(self._path(name))["size"] <= start:
                return b""
            return bytes(self._files.cat_file(self._path(name), start=start))
        except FileNotFoundError:
            return b""
        except Exception as error:
            raise self._disk_error(f"{name} cannot be read", error) from None

    def write(self, name: str, content: str | bytes) -> None:
        """Write a small file; text in UTF-8.

        Raises:
            DiskError: it cannot be written.
        """
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._path(name), content.encode() if isinstance(content, str) else content)
        except Exception as error:
            raise self._disk_error("cannot be written", error) from None

    def remove(self, *names: str) -> None:
        """Remove files; those that do not exist or cannot be removed are ignored."""
        for name in names:
            with suppress(Exception):
                self._files.rm(self._path(name))

    def remove_folder(self) -> None:
        """Remove the folder with all that it holds; one that does not exist or cannot be removed is ignored."""
        with suppress(Exception):
            self._files.rm(self._root, recursive=True)

    def push(self, local: Path) -> None:
        """Copy the files of a local folder that have changed since the last push or pull, each atomically.

        Raises:
            DiskError: a file cannot be written.
        """
        for file in sorted(path for path in local.rglob("*") if path.is_file() and path.suffix != _PART):
            name = file.relative_to(local).as_posix()
            stat = file.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if self._copied.get(name) == state:
                continue
            try:
                self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(file), self._path(name) + _PART)
                self._files.mv(self._path(name) + _PART, self._path(name))
            except Exception as error:
                raise self._disk_error(f"{name} cannot be written", error) from None
            self._copied[name] = state

    def pull(self, local: Path) -> None:
        """Replace a local folder by a copy of this one; an empty folder if this one does not exist.

        Raises:
            DiskError: something cannot be read, or cannot be written here.
        """
        part = local.with_name(local.name + _PART)
        exists = self.exists()
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            for name in self._names() if exists else []:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # it was removed meanwhile, as checkpoints are
                    self._files.get_file(self._path(name), str(part / name))
            shutil.rmtree(local, ignore_errors=True)
            part.rename(local)
            names = self._names() if exists else []
            for file in local.rglob("*"):
                if file.is_file() and file.relative_to(local).as_posix() not in names:
                    file.unlink()
        except Exception as error:
            raise self._disk_error("cannot be copied here", error) from None
        stats = {name: (local / name).stat() for name in names if (local / name).is_file()}
        self._copied = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    def _names(self) -> list[str]:
        self._files.invalidate_cache()
        found = self._files.find(self._root)
        return [path.removeprefix(self._root).lstrip("/") for path in found if not path.endswith(_PART)]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _disk_error(self, failure: str, error: Exception) -> DiskError:
        reason = masked(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        return DiskError(f"{self._setting}: {self.location}: {failure}: {reason}")


class _FolderInMemory(SharedFolder):
    """A SharedFolder that becomes a plain one where it is unpickled."""

    def __reduce__(self) -> tuple[type[SharedFolder], tuple[str, str]]:
        return SharedFolder, (self._url, self._setting)


class EndedTrialCopier:
    """Copies the folders of ended trials into the sweep's folder, in background threads.

    Args:
        shared: the sweep's folder in shared storage.
        folder: the sweep's folder.
        before: called in a background thread before a trial's folder here is replaced.
    """

    def __init__(
        self, shared: SharedFolder, folder: Path, before: Callable[[int], object] = lambda number: None
    ) -> None:
        self._shared, self._folder, self._before = shared, folder, before
        self._threads = ThreadPoolExecutor(_COPY_THREADS)

    def fetch(self, number: int, then: Callable[[], None] = lambda: None) -> None:
        """Begin to copy a trial's folder; ``then`` is called when it is here."""
        self._threads.submit(self._fetch, number, then)

    def fetch_missing(self, numbers: Iterable[int]) -> None:
        """Begin to copy the folders of those trials that have none here, or no more than events of when they ran."""
        for number in numbers:
            folder = self._folder / "trials" / str(number)
            if not folder.is_dir() or (folder / LIVE_MARK).exists():
                self.fetch(number)

    def close(self) -> None:
        """Wait for all copies."""
        self._threads.shutdown(wait=True)

    def _fetch(self, number: int, then: Callable[[], None]) -> None:
        try:
            self._before(number)
            trial = self._shared.child("trials", str(number))
            if trial.exists():  # a trial that failed at once has written nothing
                trial.pull(self._folder / "trials" / str(number))
            then()
        except (ConfigError, DiskError) as error:
            logger.warning("trial %d: its folder stays in shared storage: %s", number, error)


def scratch_folder(location: str, number: int) -> Path:
    """Return the folder on this node that a trial works in.

    Args:
        location: of the sweep's folder in shared storage.
        number: of the trial.
    """
    digest = hashlib.sha256(location.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"nuanced-speech-{os.getuid()}" / digest / str(number)


def _filesystem(location: str, setting: str) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path on it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(location)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        reason = masked(one_line(error, None))
        raise ConfigError(
            f"{setting}: {masked(location)}: {reason}; install the package that it names on all nodes, or take a path"
        ) from None
    except Exception as error:
        reason = masked(one_line(error, None))[:200]
        raise ConfigError(f"{setting}: {masked(location)}: cannot be reached: {reason}") from None
