"""Log output of a command: to stderr, and into a file if one is named."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from nuanced_core.errors import ConfigError, NuancedError
from nuanced_core.progress import stderr_console
from tune.config.secrets import masked

__all__ = ["LogOptions", "log_output"]

LOGGERS = ("nuanced_core", "tune")  # other libraries keep their own logging
_PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


@dataclass(frozen=True)
class LogOptions:
    """The options ``--quiet``, ``--verbose`` and ``--log-file``."""

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None


@contextmanager
def log_output(options: LogOptions) -> Iterator[None]:
    """Write the log records of this project to stderr, and to ``options.log_file``, within the context.

    stderr gets INFO and above, WARNING and above with ``quiet``, all records with ``verbose``. The file gets all
    records, and the error that ends the command. ``quiet`` also hides tables and progress bars.

    Raises:
        ConfigError: ``quiet`` and ``verbose`` are both set, or the log file cannot be written.
    """
    if options.quiet and options.verbose:
        raise ConfigError("--quiet and --verbose contradict each other; give one of them")
    file = None if options.log_file is None else _file_handler(options.log_file)
    handlers = [_stderr_handler(options), *([] if file is None else [file])]
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    console = stderr_console()
    was_quiet, console.quiet = console.quiet, options.quiet
    for logger in loggers:
        logger.setLevel(min(handler.level for handler in handlers))
        logger.propagate = False  # a library may have given the root logger a handler for stderr
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        if file is not None and not isinstance(error, (typer.Exit, BrokenPipeError)):  # exit codes, not errors
            _write_error(file, error)
        raise
    finally:
        console.quiet = was_quiet
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            handler.close()


def _stderr_handler(options: LogOptions) -> logging.Handler:
    console = stderr_console()
    handler: logging.Handler
    if console.is_terminal and not options.quiet:
        handler = _ConsoleHandler(console)
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO)
    handler.setFormatter(_LineFormatter("%(name)s: %(message)s" if options.verbose else "%(message)s"))
    return handler


def _file_handler(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--log-file {path}: cannot be written: {error.strerror}; name another file") from None
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(_MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _write_error(file: logging.Handler, error: Exception) -> None:
    """Write the error that ends the command, with its traceback unless it is one that the user can fix."""
    trace = None if isinstance(error, NuancedError) else (type(error), error, error.__traceback__)
    file.handle(logging.LogRecord("nuanced", logging.ERROR, __file__, 0, str(error), None, trace))


class _MaskingFormatter(logging.Formatter):
    """Masks passwords, also in the text of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class _LineFormatter(_MaskingFormatter):
    """Prefixes warnings and errors with ``warning:`` and ``error:``."""

    def format(self, record: logging.LogRecord) -> str:
        return _PREFIXES.get(record.levelno, "") + super().format(record)


class _ConsoleHandler(logging.Handler):
    """Prints records on a Rich console, above its live table or progress bar.

    Unlike ``rich.logging.RichHandler`` it leaves line breaks to the terminal, so that commands can be copied.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = Text(self.format(record), style=_STYLES.get(record.levelno, ""))
            self._console.print(text, soft_wrap=True)
        except Exception:
            self.handleError(record)
