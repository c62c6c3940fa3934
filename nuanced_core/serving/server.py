"""Start of the server: address, token and models checked, then served until it is interrupted."""

import logging
import re
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nuanced_core.errors import ConfigError
from nuanced_core.speech.models import SpeechModels

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from nuanced_core.serving.work import Limits

__all__ = ["MIN_TOKEN", "check_access", "listen", "make_server", "serve"]

logger = logging.getLogger(__name__)

MIN_TOKEN = 16  # characters
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def serve(
    model: Path,
    host: str = "127.0.0.1",
    port: int = 8880,
    *,
    token: str | None = None,
    names: Collection[str] = (),
    source: str = "auto",
    device: str = "auto",
) -> None:
    """Serve the speech API and the page until Ctrl-C; print the address.

    Args:
        model: folder of the encoder.
        host: address to listen on.
        port: 0: any free one.
        token: that clients must send; required unless only this machine can reach ``host``.
        names: names beside ``host`` by which clients call the server.
        source, device: as for ``SpeechModels.load``.

    Raises:
        ConfigError: there is no token but one is needed, the address cannot be used, or the extra ``serve`` is not
            installed.
        WeightsError: the encoder or a model file is not available.
    """
    try:
        import python_multipart  # noqa: F401 (Starlette needs it for forms, and does not depend on it)
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve: needs {error.name}: pip install 'nuanced-speech[serve]'") from None
    from nuanced_core.serving.app import make_app
    from nuanced_core.serving.guard import Access
    from nuanced_core.serving.studio import Studio
    from nuanced_core.serving.work import Limits

    check_access(host, token)
    limits = Limits()
    with listen(host, port) as listener:
        speech = SpeechModels.load(model, source, device)
        _load(speech)
        app = make_app(Studio(speech, limits), Access(host, tuple(names), token), limits, Path(model).name or "default")
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listener.getsockname()[1]}  (Ctrl-C stops it)", flush=True)
        with suppress(KeyboardInterrupt):  # which uvicorn raises again when it has stopped
            make_server(app, limits).run(sockets=[listener])


def make_server(app: "ASGIApp", limits: "Limits") -> "uvicorn.Server":
    """Return the HTTP server of an application; its ``run`` and ``serve`` take the sockets to listen on."""
    import uvicorn

    from nuanced_core.serving.connections import connection_class

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a client's mistake is answered, not logged
    config = uvicorn.Config(
        app,
        http=connection_class(limits),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    return uvicorn.Server(config)


def _load(speech: SpeechModels) -> None:
    """Load everything before the first request."""
    _ = speech.models.kokoro, speech.models.whisper, speech.models.phonemizer
    for name in speech.encoder.config.features.speaker_encoders:
        speech.models.speaker_encoder(name)


def check_access(host: str, token: str | None) -> None:
    """Check that a server that others can reach has a token, and that the token is hard to guess.

    Raises:
        ConfigError: it has none, or one that cannot be used.
    """
    from nuanced_core.serving.guard import is_loopback

    if token is None:
        if not is_loopback(host):
            raise ConfigError(
                f"--host {host}: others can reach it; export a random token, such as NUANCED_TOKEN=$(openssl rand -hex "
                "24), and give --token env:NUANCED_TOKEN, or leave --host out"
            )
    elif len(token) < MIN_TOKEN or not _PRINTABLE.fullmatch(token):
        raise ConfigError(f"--token: has {len(token)} characters; at least {MIN_TOKEN} of ASCII, no spaces, are needed")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: the address cannot be used.
    """
    if not 0 <= port <= 65_535:  # getaddrinfo would take the rest of a division
        raise ConfigError(f"--port {port}: give 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"--host {host} --port {port}: cannot be used ({reason}); choose another") from None
    return listener
