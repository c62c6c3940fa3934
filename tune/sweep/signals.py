"""SIGINT (Ctrl-C) and SIGTERM: the first signal asks for a stop, the second stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stop_on_signal"]


@contextmanager
def stop_on_signal(ask: Callable[[], object]) -> Iterator[None]:
    """Call ``ask`` at the first of those signals inside the context, and raise KeyboardInterrupt at each later one.

    Only the main thread receives signals: in another thread this does nothing.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
