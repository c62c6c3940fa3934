"""Connections whose requests do not arrive, or whose answers are not read: they count for the limit, so they end."""

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from nuanced_core.serving.work import Limits

__all__ = ["connection_class"]


def connection_class(limits: "Limits") -> type[H11Protocol]:
    """Return uvicorn's class of a connection, with time limits for both directions.

    uvicorn itself limits only how long a connection is silent after an answer.

    Args:
        limits: ``head_seconds`` from the connection, or from the first byte of a later request, until a head has
            arrived; ``unread_seconds`` in which a client may read nothing of what waits for it.
    """

    class PromptConnection(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _unread_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()
            self.resume_writing()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._unread_timer is None:
                self._unread_timer = self.loop.call_later(limits.unread_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread_timer is not None:
                self._unread_timer.cancel()
                self._unread_timer = None

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # A transport that is closed first waits for the client to read.
            self.loop.call_later(limits.unread_seconds, self.transport.abort)

        def _watch(self) -> None:
            """Let the timer run exactly while a head is awaited."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(limits.head_seconds, self.timeout_keep_alive_handler)

        def _stop(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return PromptConnection
