"""Limits of the server, and the queue of work for the models: few at once, few waiting, each for a limited time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

        A function that is running when its time is over keeps its place until it checks its deadline.

        Raises:
            ApiError: 503, too many wait already; 504, the time is over.
        """
        limits = self._limits
        if self._unfinished >= limits.running + limits.waiting:
            message = f"{self._unfinished} requests are being answered or wait; try again later"
            raise ApiError(503, message, "overloaded", headers={"Retry-After": "5"})
        deadline = Deadline(limits.work_seconds)
        loop = asyncio.get_running_loop()
        self._unfinished += 1
        future = self._threads.submit(self._call, function, deadline)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished))
        return await self._wait(future, deadline)

    async def stream(self, function: Callable[[Deadline], Iterator[bytes]]) -> AsyncIterator[bytes]:
        """Return the chunks that a function yields in a thread, as they come, once there is a first one.

        What goes wrong later ends the stream: its answer has begun already.

        Raises:
            ApiError: as ``run``, or of the function before its first chunk.
        """
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: the end

        def work(deadline: Deadline) -> None:
            for chunk in function(deadline):
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        task = asyncio.create_task(self.run(work))
        task.add_done_callback(lambda _: chunks.put_nowait(None))
        try:
            first = await chunks.get()
        except asyncio.CancelledError:
            task.cancel()
            raise
        if first is None:
            await task  # raises what went wrong
        return _rest(first, chunks, task)

    async def _wait(self, future: "Future[T]", deadline: Deadline) -> T:
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), deadline.remaining)
        except asyncio.TimeoutError:
            raise deadline.error() from None
        finally:
            deadline.cancel()
            future.cancel()  # if it has not begun

    @staticmethod
    def _call(function: Callable[[Deadline], T], deadline: Deadline) -> T:
        deadline.check()
        return function(deadline)

    def _finished(self) -> None:
        self._unfinished -= 1


async def _rest(
    first: bytes | None, chunks: "asyncio.Queue[bytes | None]", task: "asyncio.Task[None]"
) -> AsyncIterator[bytes]:
    """Yield a first chunk and those that follow; a client that leaves ends the work."""
    try:
        chunk = first
        while chunk is not None:
            yield chunk
            chunk = await chunks.get()
        await task
    finally:
        task.cancel()
