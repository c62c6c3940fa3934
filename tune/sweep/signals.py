"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM, and SIGHUP, which a closed terminal sends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nuanced_core.progress import leave_closed_terminal

__all__ = ["interrupt_on_signal", "stop_on_signal"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_on_signal(ask: Callable[[], object]) -> Iterator[None]:
    """Call ``ask`` at the first of those signals inside the context, and raise KeyboardInterrupt at each later one.

    Only the main thread receives signals: in another thread this does nothing. SIGHUP stays ignored where this process
    ignores it, as after ``nohup``. Output to a terminal that was closed is discarded from then on.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        leave_closed_terminal()
        if asked and number == signal.SIGHUP:
            return  # the kernel and the shell both send it, so that the second one is not impatience
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask()

    with _handled(handle):
        yield


@contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """Raise KeyboardInterrupt at each of those signals inside the context, so that it is left in good order.

    Only the first SIGHUP counts: the kernel and the shell both send it, and the second would interrupt the clean-up.
    """
    hung_up = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal hung_up
        leave_closed_terminal()
        if hung_up and number == signal.SIGHUP:
            return
        hung_up = number == signal.SIGHUP or hung_up
        raise KeyboardInterrupt

    with _handled(handle):
        yield


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    numbers = [number for number in _SIGNALS if number not in ignored]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
