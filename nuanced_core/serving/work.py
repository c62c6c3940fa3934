"""Limits of the server, and the queue of work for the models: few at once, few waiting, each for a limited time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from nuanced_core.serving.errors import ApiError

__all__ = ["Deadline", "Limits", "WorkQueue"]

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    upload_bytes: int = 64 << 20  # of a request with clips
    json_bytes: int = 64 << 10  # of any other request
    head_seconds: float = 10.0  # until the head of a request has arrived
    body_seconds: float = 60.0  # until the body of a request has arrived
    work_seconds: float = 300.0  # until an answer is ready, with the time in the queue
    unread_seconds: float = 60.0  # in which a client reads nothing of an answer
    running: int = 1  # requests that use the models at once; each uses all cores
    waiting: int = 8  # requests that wait for them
    connections: int = 64
    text_characters: int = 4096  # as OpenAI's
    clip_seconds: float = 600.0  # of a clip
    clip_samples: int = 60_000_000  # of all channels of a clip, 240 MB: silence can be compressed a thousandfold
    clips: int = 8  # of a voice
    voices: int = 100  # made of clips and kept in memory, 0.5 MB each


class Deadline:
    """Says between two steps of a piece of work whether anybody still waits for it.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._cancelled = False

    def cancel(self) -> None:
        """Let the next ``check`` fail."""
        self._cancelled = True

    @property
    def remaining(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise the error of an exceeded time limit if nobody waits any more.

        Raises:
            ApiError: 504.
        """
        if self._cancelled or not self.remaining:
            raise self.error()

    def error(self) -> ApiError:
        """Return the error of an exceeded time limit."""
        message = f"this took longer than the {self.seconds:g} s that the server allows; ask for less at once"
        return ApiError(504, message, "timeout")


class WorkQueue:
    """Runs functions in threads, so that the server answers meanwhile."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.running, thread_name_prefix="speech")
        self._unfinished = 0

    async def run(self, function: Callable[[Deadline], T]) -> T:
        """Return what a function returns, called in a thread with its deadline.

        A function that is running when its time is over, or when this is cancelled, keeps its place until it checks
        its deadline.

        Raises:
            ApiError: 503, too many wait already; 504, the time is over.
        """
        limits = self._limits
        if self._unfinished >= limits.running + limits.waiting:
            message = f"{self._unfinished} requests are being answered or wait; try again later"
            raise ApiError(503, message, "overloaded", headers={"Retry-After": "5"})
        deadline = Deadline(limits.work_seconds)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def finish() -> None:
            self._unfinished -= 1
            ended.set()

        self._unfinished += 1
        # Not an asyncio future: it would log what goes wrong when nobody waits any more.
        future = self._threads.submit(self._call, function, deadline)
        future.add_done_callback(lambda _: _call_in(loop, finish))
        try:
            await asyncio.wait_for(ended.wait(), deadline.remaining)
        except asyncio.TimeoutError:
            raise deadline.error() from None
        finally:
            deadline.cancel()
            future.cancel()  # if it has not begun
        return future.result()

    async def stream(self, function: Callable[[Deadline], Iterator[bytes]]) -> AsyncIterator[bytes]:
        """Return the chunks that a function yields in a thread, as they come, once there is a first one.

        What goes wrong later is raised after the chunks before it. Dropping the iterator ends the work.

        Raises:
            ApiError: as ``run``, or of the function before its first chunk.
        """
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: the end

        def work(deadline: Deadline) -> None:
            for chunk in function(deadline):
                _call_in(loop, chunks.put_nowait, chunk)

        def end(task: "asyncio.Task[None]") -> None:
            chunks.put_nowait(None)
            if not task.cancelled():
                task.exception()  # seen, or it is logged if nobody waits any more

        task = asyncio.create_task(self.run(work))
        task.add_done_callback(end)
        stream = _chunks(chunks, task)
        await anext(stream)
        return stream

    @staticmethod
    def _call(function: Callable[[Deadline], T], deadline: Deadline) -> T:
        deadline.check()
        return function(deadline)


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """Call a function in the thread of an event loop, unless the loop is closed: the server has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


async def _chunks(chunks: "asyncio.Queue[bytes | None]", task: "asyncio.Task[None]") -> AsyncIterator[bytes]:
    """Yield an empty chunk once there is a first one, so that closing this generator ends the work; then the chunks."""
    try:
        chunk = await chunks.get()
        if chunk is None:
            await task  # raises what went wrong
        yield b""
        while chunk is not None:
            yield chunk
            chunk = await chunks.get()
        await task
    finally:
        task.cancel()
