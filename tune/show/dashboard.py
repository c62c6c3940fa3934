"""Optuna's dashboard for the study of a sweep, served on the loopback address of this machine only."""

import logging
import socket
from pathlib import Path

from nuanced_core.errors import ConfigError
from tune.search.study import read_storage, read_study

__all__ = ["check_port", "serve"]

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"  # anyone who can open the dashboard can delete studies


def serve(folder: Path, port: int) -> None:
    """Serve the dashboard for the sweep in ``folder`` until it is interrupted; the sweep may be running.

    Raises:
        ConfigError: ``folder`` holds no sweep, the extra ``dashboard`` is not installed, or the port is taken.
    """
    read_study(folder)
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ConfigError(
            "the dashboard is an extra: install it with pip install 'nuanced-speech[dashboard]'"
        ) from None
    check_port(_HOST, port, f"--port {port}")
    logger.info("http://%s:%s/dashboard  (Ctrl-C stops it)", _HOST, port)
    run_server(read_storage(folder), host=_HOST, port=port)


def check_port(host: str, port: int, option: str) -> None:
    """Check that a server can listen on ``host`` and ``port``; ``option`` is what the error quotes.

    Raises:
        ConfigError: it cannot, for example because another server does.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{option}: cannot be used ({error}); choose another") from None
