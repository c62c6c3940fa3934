"""``nuanced dashboard``: Optuna's own dashboard on a sweep's study, on this machine's loopback alone."""

import logging
import socket
from pathlib import Path

from nuanced_core.errors import ConfigError
from tune.search.study import read_storage, read_study

__all__ = ["serve"]

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"  # whoever reaches it may delete studies


def serve(folder: Path, port: int) -> None:
    """Serve the dashboard until it is interrupted; the sweep may be running.

    Raises:
        ConfigError: ``folder`` holds no sweep, the extra is not installed, or the port is taken.
    """
    read_study(folder)
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ConfigError(
            "the dashboard is an extra: install it with pip install 'nuanced-speech[dashboard]'"
        ) from None
    _check_port(port)
    logger.info("http://%s:%s/dashboard  (Ctrl-C ends it)", _HOST, port)
    run_server(read_storage(folder), host=_HOST, port=port)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port {port}: cannot be used ({error}); take another") from None
