"""The Ray runtime of this process: started or joined with the project's environment, and shut down afterwards."""

import fcntl
import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nuanced_core.errors import ConfigError, DiskError, NuancedError, one_line
from nuanced_core.paths import user_path
from tune.cluster.disk import check_disk

__all__ = ["RAY_ENVIRONMENT", "ClusterError", "check_local_ray", "joined_ray", "local_ray", "temporary_parent"]

logger = logging.getLogger(__name__)

# Read by Ray in this process and in those that it starts. Variables that the user has set are not changed.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Trials on this machine keep the driver's working directory: relative paths in settings mean the same there.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A trial of 0 GPUs sees none, instead of all.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # The driver handles SIGINT itself; the study and TensorBoard hold what Ray would log.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Ray's newer output also prints at verbosity 0.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # The project's searcher limits the number of concurrent trials; Ray would start them one by one.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
}
# Seconds until the first worker process has to answer. Ray itself starts one that is late after 60 s again.
WORKER_SECONDS = 180.0
_FOLDER_BYTES = 64 * 2**20  # Ray's logs and sockets take 1 MB, a few more if it fails
_FOLDER_PREFIX = "nuanced-ray-"
_LOCK = "lock"  # file in Ray's temporary folder, locked while the process that started Ray lives
# Ray makes the folder that it is given writable for everybody: one within a folder that only this user can enter.
_INNER = "r"
# Ray appends ``/session_DATE_TIME_PID/sockets/plasma_store``, and the kernel limits the path of a socket to 107 bytes.
_LONGEST_FOLDER = 107 - 64 - len(f"/{_INNER}")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_+=:,./@-]*")
_LINKS = Path("/tmp")  # where a link to a folder is made whose own path Ray cannot use
_REMOVAL_SECONDS = 5.0  # for which Ray's processes may still write to the folder


class ClusterError(NuancedError):
    """Ray cannot be started, or a cluster cannot be joined."""

    exit_code = 1


@contextmanager
def local_ray(temp: str | None = None, **options: Any) -> Iterator[None]:
    """Run Ray on this machine within the context; a Ray that this process already runs is used as is.

    Ray's own files are in a new folder, which is removed at the end. If Ray does not start, its logs stay in it until
    the next start.

    Args:
        temp: the folder in which that folder is made; None for ``temporary_parent``.
        options: arguments of ``ray.init``.

    Raises:
        ConfigError, DiskError: as ``check_local_ray``.
        ClusterError: Ray does not start, or none of its worker processes does.
    """
    ray = _configured_ray()
    if ray.is_initialized():
        yield
        return
    check_local_ray(temp)
    executable = shlex.quote(sys.executable)
    if executable != sys.executable:  # Ray puts it into a command of bash as it is
        options["runtime_env"] = {"py_executable": executable}
    with _RayFolder(temporary_parent(temp)) as temporary:
        try:
            try:
                with _hangup_blocked():
                    ray.init(
                        address="local",
                        _temp_dir=str(temporary.path),
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        **options,
                    )
                _require_worker(ray)
            except Exception as error:
                temporary.keep()
                reason = (
                    str(error) if isinstance(error, ClusterError) else f"Ray does not start: {one_line(error, 300)}"
                )
                logs = temporary.folder
                raise ClusterError(f"{reason}{_last_words(logs)}; Ray's logs: {logs}") from error
            yield
        finally:
            ray.shutdown()


@contextmanager
def joined_ray(address: str, **options: Any) -> Iterator[None]:
    """Join the Ray cluster at ``address`` for the duration of the context, unless this process has joined one.

    Args:
        options: arguments of ``ray.init``.

    Raises:
        ClusterError: the cluster cannot be joined.
    """
    ray = _configured_ray()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        raise ClusterError(f"--address {address}: cannot be joined: {one_line(error, 300)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def temporary_parent(temp: str | None = None) -> Path:
    """Return the folder for Ray's temporary folder: ``temp``, else $RAY_TMPDIR, else the system's temporary folder."""
    named = temp or os.environ.get("RAY_TMPDIR")
    return user_path(named).absolute() if named else Path(tempfile.gettempdir()).absolute()


def check_local_ray(temp: str | None = None) -> None:
    """Check that Ray could start here, without writing anything.

    Raises:
        ConfigError: Ray cannot run in this Python environment.
        DiskError: its temporary folder cannot be written, or its disk is full.
    """
    package = importlib.util.find_spec("ray")
    for path in (sys.executable, "" if package is None else package.origin or ""):
        # The parser of Ray's commands knows these characters, but their writer does not quote them.
        if set(path) & {"'", "\\"} or not _is_utf8(path):
            raise ConfigError(
                f"{path!r}: Ray cannot run in a folder whose name has a quote, a backslash or bytes that are not "
                "UTF-8; make the virtual environment in another folder"
            )
    if shutil.which("bash") is None:
        raise ConfigError("PATH has no bash, which Ray starts its processes with; install it")
    fix = "name another folder with --temp DIR or RAY_TMPDIR"
    parent = temporary_parent(temp)
    check_disk(parent, _FOLDER_BYTES, fix)
    if not _is_usable(parent / f"{_FOLDER_PREFIX}12345678") and not os.access(_LINKS, os.W_OK):
        raise DiskError(
            f"{parent}: too long a path, or too odd, for Ray's sockets, and {_LINKS} is not writable; {fix}"
        )


class _RayFolder:
    """A new temporary folder for Ray, removed at the end of the context.

    Attributes:
        folder: where it is, with mode 0700.
        path: of a folder in it, for Ray; by a link if Ray cannot use the folder's own path.
    """

    def __init__(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for place in {parent, _LINKS}:
                _remove_abandoned(place)
            # The folder gets its name when it is locked: before that, others would take it for an abandoned one.
            part = Path(tempfile.mkdtemp(prefix=f".{_FOLDER_PREFIX}", dir=parent))
            self._lock = (part / _LOCK).open("w")
            with suppress(OSError):  # a file system without locks, where nothing counts as abandoned
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.folder = part.rename(part.with_name(part.name[1:]))
            self._link = None if _is_usable(self.folder) else _LINKS / self.folder.name
            if self._link is not None:
                self._link.symlink_to(self.folder)
            self.path = (self._link or self.folder) / _INNER
        except OSError as error:
            raise DiskError(
                f"{parent}: Ray's temporary folder cannot be made: {error.strerror}; name another folder with "
                "--temp DIR or RAY_TMPDIR"
            ) from None
        self._is_kept = False

    def keep(self) -> None:
        """Leave the folder when the context ends, until the next one is made."""
        self._is_kept = True

    def __enter__(self) -> "_RayFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        until = time.monotonic() + _REMOVAL_SECONDS
        while not self._is_kept and self.folder.exists() and time.monotonic() < until:
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(0.02)
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        self._lock.close()


def _remove_abandoned(place: Path) -> None:
    """Remove the folders of processes that were killed, and links to such folders."""
    for path in place.glob(f"{_FOLDER_PREFIX}*"):
        with suppress(OSError):
            folder = path.readlink() if path.is_symlink() else path
            if path.lstat().st_uid == os.getuid() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
                if path != folder:
                    path.unlink()


def _is_abandoned(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return not folder.exists()  # the target of a link; a folder without a lock is somebody else's
    except OSError:  # locked, or a file system without locks
        return False
    return True


def _is_usable(folder: Path) -> bool:
    """Return whether Ray can use a temporary folder by this path."""
    return len(os.fsencode(folder)) <= _LONGEST_FOLDER and _PLAIN_PATH.fullmatch(str(folder)) is not None


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_worker(ray: Any) -> None:
    """Check that a worker process starts: Ray would wait for one without an end and without a word.

    Raises:
        ClusterError: none answers within ``WORKER_SECONDS``.
    """
    # The variables of the actors of Ray Tune: Ray starts processes with variables by another command than others, and
    # a trial can use the process again.
    variables = {"PL_DISABLE_FORK": "1", "RAY_CHDIR_TO_TRIAL_DIR": os.environ["RAY_CHDIR_TO_TRIAL_DIR"]}
    call = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": variables})(_answer)
    answer = call.remote()
    first = min(10.0, WORKER_SECONDS)
    if not ray.wait([answer], timeout=first)[0]:
        logger.info("waiting for Ray's first worker process, at most %.0f s", WORKER_SECONDS)
        if not ray.wait([answer], timeout=WORKER_SECONDS - first)[0]:
            raise ClusterError(f"none of Ray's worker processes starts within {WORKER_SECONDS:.0f} s")
    ray.get(answer)


def _answer() -> None:
    """Stand for a task in a worker process."""


def _last_words(folder: Path) -> str:
    """Return the last line that Ray's processes wrote to stderr, as a part of a message, or an empty string."""
    written = [file for file in folder.glob(f"{_INNER}/session_*/logs/*.err") if file.is_file() and file.stat().st_size]
    for file in sorted(written, key=lambda file: file.stat().st_mtime, reverse=True):
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        found = [line for line in lines if line.strip()]
        if found:
            return f" ({file.name}: {' '.join(found[-1].split())[:200]})"
    return ""


@contextmanager
def _hangup_blocked() -> Iterator[None]:
    """Block SIGHUP for the processes that are started within the context, which inherit that.

    When a terminal is closed, all its processes get the signal; Ray's have to go on until the trials have written
    their checkpoints.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _configured_ray() -> Any:
    """Import Ray with the project's environment, its log records and warnings hidden."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")  # reads the environment again: Ray read it when it was imported, before it was set here
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the study holds what matters
    warnings.filterwarnings("ignore", module=r"(ray|optuna)\b")
    return ray
