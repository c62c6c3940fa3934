"""Loading of espeak-ng, whatever the path of its data.

espeak-ng keeps the path of its data in a buffer of 160 bytes. It ignores a longer one, looks in the folder that it was
built in, and ends the process when nothing is there.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

from nuanced_core.errors import ConfigError, one_line

__all__ = ["espeak_library"]

LONGEST_PATH = 159  # bytes
_FOLDERS = Path("/proc/self/fd")  # a path of each open folder that is always short


@contextmanager
def espeak_library() -> Iterator[None]:
    """Make espeak-ng loadable within the context, in which the objects of ``misaki.espeak`` have to be made.

    Raises:
        ConfigError: espeak-ng, or a copy of its library in the temporary folder, cannot be loaded.
    """
    try:
        import espeakng_loader
        import misaki.espeak  # noqa: F401 (sets the paths of phonemizer's wrapper)
        from phonemizer.backend.espeak.wrapper import EspeakWrapper

        data = Path(espeakng_loader.get_data_path()).resolve()
        if not (data / "phontab").is_file():
            raise ConfigError(f"{data}: holds no data of espeak-ng; install the package espeakng-loader again")
        if _fits(data):
            with _copies_removed():
                yield
            return
        # Without a data path, phonemizer leaves the search to espeak-ng; phonemizer itself resolves links.
        EspeakWrapper.set_data_path(None)
        try:
            variables = _variables(ESPEAK_DATA_PATH=_short_path(data), PHONEMIZER_ESPEAK_DATA_PATH=None)
            with _copies_removed(), variables:
                yield
        finally:
            EspeakWrapper.set_data_path(str(data))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"espeak-ng cannot be loaded: {one_line(error, 300)}; name a temporary folder that can be "
            "written and that libraries can be loaded from with TMPDIR"
        ) from None


@contextmanager
def _copies_removed() -> Iterator[None]:
    """Remove, at the end of the context, the copies of the library that phonemizer loads within it.

    phonemizer removes them when the process ends, but not in a process of ``multiprocessing``, or one that is killed.
    A loaded library needs its file no more.
    """
    from phonemizer.backend.espeak import api

    before = api.tempfile, api.EspeakAPI.__dict__["_delete"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        api.tempfile = SimpleNamespace(mkdtemp=partial(tempfile.mkdtemp, dir=folder))
        api.EspeakAPI._delete = staticmethod(lambda library, copy: None)
        try:
            yield
        finally:
            api.tempfile, api.EspeakAPI._delete = before


def _fits(data: Path) -> bool:
    try:
        return len(str(data).encode()) <= LONGEST_PATH
    except UnicodeEncodeError:  # bytes that are not UTF-8, which phonemizer cannot pass on
        return False


@cache
def _short_path(data: Path) -> str:
    """Return a short path of the folder ``data`` that is valid as long as this process, and those it forks, live.

    Raises:
        ConfigError: this system has no such paths.
    """
    if not _FOLDERS.is_dir():
        raise ConfigError(
            f"{data}: longer than the {LONGEST_PATH} bytes that espeak-ng can read; install in a folder with a shorter "
            "path"
        )
    return str(_FOLDERS / str(os.open(data, os.O_RDONLY)))


@contextmanager
def _variables(**values: str | None) -> Iterator[None]:
    """Set environment variables, or remove those that are None, and restore them at the end of the context."""
    before = {name: os.environ.get(name) for name in values}
    _set_variables(values)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
