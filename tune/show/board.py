"""TensorBoard for a sweep or a single run, served until Ctrl-C."""

import logging
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nuanced_core.errors import ConfigError
from tune.config.sweep_config import SETTINGS_FILE
from tune.loggers.layout import write_layout
from tune.show.dashboard import check_port
from tune.trial.protocol import CONFIG_FILE

__all__ = ["LOOPBACK", "serve_board"]

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"  # TensorBoard asks nobody for a password
_SAMPLES = "images=100,audio=100"  # shown of each sound and picture; TensorBoard's default is 10
_TRIALS = "trials"


def serve_board(folder: Path, host: str = LOOPBACK, port: int = 6006, *, open_browser: bool = False) -> None:
    """Serve TensorBoard for what ``folder`` holds, print its address, and return when it is interrupted.

    Args:
        folder: of a sweep or of a single run, which may be running.
        host: address to listen on.
        port: to listen on; 0: any free one.
        open_browser: whether to open the address in a browser.

    Raises:
        ConfigError: ``folder`` holds neither, or host and port cannot be used.
    """
    from tensorboard import default, program

    logdir = _logdir(folder)
    check_port(host, port, f"--host {host} --port {port}")
    write_layout(logdir)
    board = program.TensorBoard(default.get_plugins())
    with _quiet():
        board.configure(["", *_options(logdir, host, port)])
        try:
            url = board.launch()
        except program.TensorBoardServerException as error:
            raise ConfigError(f"--host {host} --port {port}: {' '.join(error.msg.split())}") from None
        except SystemExit:  # after it printed why
            raise ConfigError("TensorBoard did not start") from None
        print(f"{url}  (Ctrl-C stops it)", flush=True)
        if open_browser:
            webbrowser.open(url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


def _logdir(folder: Path) -> Path:
    if (folder / SETTINGS_FILE).is_file():
        return folder / _TRIALS
    if (folder / CONFIG_FILE).is_file():
        return folder
    raise ConfigError(
        f"{folder}: neither the folder of a sweep nor of a run (it holds no {SETTINGS_FILE} and no {CONFIG_FILE})"
    )


def _options(logdir: Path, host: str, port: int) -> list[str]:
    from tensorboard.data import server_ingester

    try:
        server_ingester.get_server_binary()
        fast = "true"  # "auto" would print an advice
    except server_ingester.NoDataServerError:
        fast = "false"
    return [
        f"--logdir={logdir}",
        f"--host={host}",
        f"--port={port}",
        f"--samples_per_plugin={_SAMPLES}",
        f"--load_fast={fast}",
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorBoard's and its web server's messages below warnings out of the output."""
    loggers = [logging.getLogger(name) for name in ("tensorboard", "werkzeug")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
