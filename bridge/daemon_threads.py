"""Threads that don't keep their process alive.

At its end the interpreter waits for whatever the threads of a ``ThreadPoolExecutor`` are at. A request to a ZenML
server that is away takes minutes to give up, and nobody waits for its answer when the flow is over.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Semaphore, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads(Executor):
    """Runs calls in at most so many daemon threads, each started when it is needed."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = 0
        self._idle = Semaphore(0)
        self._lock = Lock()
        self._closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``fn`` in one of the threads. Raises ``RuntimeError`` after :meth:`shutdown`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("These threads take no more calls")
            future: Future[T] = Future()
            self._calls.put((future, partial(fn, *args, **kwargs)))
            if not self._idle.acquire(blocking=False) and self._threads < self._most:
                self._threads += 1
                Thread(target=self._work, name=f"{self._name}_{self._threads}", daemon=True).start()
            return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the threads end after those before. Nobody is waited for, whatever ``wait``."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                self._cancel_waiting()
            for _ in range(self._threads):
                self._calls.put(None)

    def _cancel_waiting(self) -> None:
        try:
            while (call := self._calls.get_nowait()) is not None:
                call[0].cancel()
        except Empty:
            return

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            del call, future, function  # else an idle thread would keep what its last call has returned
            self._idle.release()
