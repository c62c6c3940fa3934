"""Progress of long work: a bar with the time left in a terminal, log lines at least 10 s apart elsewhere."""

import errno
import logging
import os
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["leave_closed_terminal", "progress_bar", "stderr_console"]

logger = logging.getLogger(__name__)

LOG_INTERVAL = 10.0  # seconds between log lines


@lru_cache(maxsize=1)
def stderr_console() -> Console:
    """Return the console of this process's stderr; bars, tables and log lines that share it do not overwrite each
    other."""
    return Console(stderr=True)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show the progress through ``total`` items; yield the function to call after each of them.

    Nothing is shown where log level INFO is disabled. Outside a terminal, the last item is not logged.

    Args:
        description: what is done to the items, such as "rendering clips".
    """
    console = stderr_console()
    if console.is_terminal and logger.isEnabledFor(logging.INFO):
        columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            try:
                yield lambda: bar.advance(task)
            finally:
                leave_closed_terminal()  # where the bar could not be removed
        return
    done, started = 0, time.monotonic()
    logged = started

    def advance() -> None:
        nonlocal done, logged
        done += 1
        now = time.monotonic()
        if now - logged > LOG_INTERVAL and done < total:
            logged = now
            left = (now - started) / done * (total - done)
            logger.info("%s: %d of %d, about %.0f s left", description, done, total, left)

    yield advance


def leave_closed_terminal() -> None:
    """Discard what this process reads from and writes to a terminal that was closed: each write to it would fail."""
    for descriptor in (0, 1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # not the ENOTTY of a file or a pipe
                with suppress(OSError):
                    null = os.open(os.devnull, os.O_RDWR)
                    os.dup2(null, descriptor)
                    os.close(null)
