"""An event loop with a runner on a thread of its own, for callers that come and go: open only while it is needed."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bridge.runners.base import Runner

T = TypeVar("T")


@dataclass(frozen=True)
class _Open:
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop
    runner: Runner
    close: asyncio.Event
    calls: set[Future[Any]] = field(default_factory=set)
    """What was asked of the loop and hasn't ended on it, whether or not its thread still waits."""


class LoopOnDemand:
    """Opened by the first call, closed after the last one unless it is needed. Any thread may call it.

    A caller is interrupted by signals; what it asked for goes on.

    Args:
        make_runner: Makes the runner, each time that the loop is opened.
        is_needed: Says, on the loop, whether it has work that no call waits for.
    """

    def __init__(self, make_runner: Callable[[], Runner], is_needed: Callable[[], bool]) -> None:
        self._make_runner = make_runner
        self._is_needed = is_needed
        self._lock = threading.Lock()
        self._open: _Open | None = None
        self._tasks: set[asyncio.Future[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether there is a loop, in this process or in the one that this is a fork of."""
        return self._open is not None

    def call(self, work: Callable[[Runner], Coroutine[Any, Any, T]], context: contextvars.Context | None = None) -> T:
        """Return what ``work`` returns, done on the loop in ``context``.

        Raises what ``work`` raises, and ``RunnerError`` where the runner can't be had.
        """
        result: Future[T] = Future()
        with self._lock:
            opened = self._open = self._open or self._opened()
            opened.calls.add(result)

        async def run() -> None:
            try:
                answer = await work(opened.runner)
            except BaseException as error:
                self._ended(opened, result)
                result.set_exception(error)
            else:
                self._ended(opened, result)
                result.set_result(answer)

        def start() -> None:
            task = asyncio.ensure_future(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        opened.loop.call_soon_threadsafe(start, context=context)
        try:
            return result.result()
        finally:
            if opened.close.is_set():
                opened.thread.join()

    def close_unless_needed(self) -> None:
        """On the loop: close it where it isn't needed, and nobody asks."""
        with self._lock:
            opened = self._open
            if opened is not None and not (opened.calls or self._is_needed()):
                self._open = None
                opened.close.set()

    def _opened(self) -> _Open:
        ready: Future[tuple[asyncio.AbstractEventLoop, Runner, asyncio.Event]] = Future()

        async def live() -> None:
            close = asyncio.Event()
            async with self._make_runner() as runner:
                ready.set_result((asyncio.get_running_loop(), runner, close))
                await close.wait()

        def work() -> None:
            try:
                asyncio.run(live())
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        thread = threading.Thread(target=work, name="modal-prefect-step-operator", daemon=True)
        thread.start()
        return _Open(thread, *ready.result())

    def _ended(self, opened: _Open, call: Future[Any]) -> None:
        """On the loop, at the end of a call."""
        with self._lock:
            opened.calls.discard(call)
        self.close_unless_needed()
