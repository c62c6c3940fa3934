"""Connections whose requests do not arrive: they count for the limit of connections, so they are closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["connection_class"]


def connection_class(head_seconds: float) -> type[H11Protocol]:
    """Return uvicorn's class of a connection with a time limit for the head of each request.

    uvicorn itself limits only how long a connection is silent after an answer.

    Args:
        head_seconds: from the connection, or from the first byte of a later request, until a head has arrived.
    """

    class PromptConnection(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()

        def _watch(self) -> None:
            """Let the timer run exactly while a head is awaited."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(head_seconds, self.timeout_keep_alive_handler)

        def _stop(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return PromptConnection
