"""What a request must satisfy before a route sees it: host, origin, token, and size and time of its body.

A page elsewhere can let its visitor's browser send requests to a server on loopback, and with DNS rebinding also read
the answers. So the name in ``Host`` must be one of this server's, and what a browser sends must come from its own page.
"""

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nuanced_core.serving.errors import ApiError, error_body
from nuanced_core.serving.work import Limits

__all__ = ["LOOPBACK_NAMES", "Access", "Guard", "is_loopback"]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY_ADDRESS = frozenset({"0.0.0.0", "::"})
_API = "/v1/"
_UPLOADS = "/v1/voices"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self' blob:; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        host: the address that it listens on.
        names: further names by which clients may call it.
        token: that clients must send; None: none.
    """

    host: str
    names: Collection[str] = ()
    token: str | None = field(default=None, repr=False)

    def knows(self, name: str) -> bool:
        """Return whether a name, without port, is one of this server's."""
        name = name.lower()
        if name in LOOPBACK_NAMES or name == self.host.lower() or name in {known.lower() for known in self.names}:
            return True
        if self.host not in _ANY_ADDRESS:
            return False
        try:
            ipaddress.ip_address(name)  # which no name server can point elsewhere
        except ValueError:
            return False
        return True


class Guard:
    """ASGI middleware that refuses requests, and adds headers for safety to all answers."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        self._app, self._access, self._limits = app, access, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        begun = False

        async def send_safely(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await JSONResponse(error_body(error), error.status, error.headers)(scope, receive, send_safely)
            return
        try:
            await self._app(scope, self._limited(scope, receive), send_safely)
        except asyncio.CancelledError:  # by uvicorn, which would log a traceback, when it has been told to stop
            if not begun:
                stopped = error_body(ApiError(503, "the server has been stopped", "stopped"))
                await JSONResponse(stopped, 503)(scope, receive, send_safely)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        api = scope["path"].startswith(_API)
        host = headers.get("host", "")
        if not self._access.knows(_hostname(host)):
            known = "--allow-host NAME of 'nuanced serve' adds a name"
            raise ApiError(421, f"host {host[:100]!r} is not a name of this server; {known}", "unknown_host")
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            raise ApiError(403, f"pages of {origin[:100]} may not use this server", "foreign_origin")
        if api and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ApiError(403, "pages of other servers may not use this one", "foreign_origin")
        if api and self._access.token is not None:
            _check_token(headers.get("authorization", ""), self._access.token)
        announced = headers.get("content-length", "0")
        if not announced.isdecimal():
            raise ApiError(400, "the header Content-Length is no number", "invalid_header")
        if int(announced) > self._most_bytes(scope):
            raise self._too_large(scope)

    def _most_bytes(self, scope: Scope) -> int:
        return self._limits.upload_bytes if scope["path"] == _UPLOADS else self._limits.json_bytes

    def _too_large(self, scope: Scope) -> ApiError:
        most = self._most_bytes(scope)
        # The rest of the body is not read.
        close = {"Connection": "close"}
        return ApiError(413, f"the request has more than {most} bytes; send less", "too_large", headers=close)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return a ``receive`` that fails when the body is too large or too late."""
        end = time.monotonic() + self._limits.body_seconds
        received = 0
        complete = False

        async def receive_limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # waits for a disconnection
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                text = f"the body did not arrive in {self._limits.body_seconds:g} s"
                raise ApiError(408, text, "timeout", headers={"Connection": "close"}) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._most_bytes(scope):
                raise self._too_large(scope)
            return message

        return receive_limited


def _host_of(origin: str) -> str:
    """Return the host and port of an origin, in lower case; "" if it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _check_token(authorization: str, token: str) -> None:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        message = "this server needs its token: send the header 'Authorization: Bearer TOKEN'"
        raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
