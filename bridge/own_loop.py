"""An event loop of its own, in a thread of its own, for what a sync caller asks of async code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")


def on_own_loop(
    core: Callable[[], Coroutine[Any, Any, T]], leave: Callable[[BaseException], bool] = lambda interruption: False
) -> T:
    """Run a coroutine on a new event loop in a new thread and return its result.

    Whatever interrupts the calling thread in the meantime (Ctrl-C, Prefect's ``TerminationSignal``) cancels the
    coroutine; its result is still waited for, since it ends sandboxes. A second interruption leaves at once.

    Where ``leave`` says of an interruption that it takes this process away, the coroutine goes no further, ends
    nothing, and the interruption is raised.
    """
    context = copy_context()
    result: Future[T] = Future()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    async def main() -> T:
        task = asyncio.ensure_future(core())
        started.set_result((asyncio.get_running_loop(), task))
        return await task

    def work() -> None:
        try:
            result.set_result(context.run(asyncio.run, main()))
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(target=work, name="zenml-modal-prefect", daemon=True)
    thread.start()
    try:
        return result.result()
    except BaseException as interruption:
        if result.done():
            raise
        loop, task = started.result()
        if leave(interruption) and not result.done():
            # The loop stands still, as after a SIGKILL: an end of its own would end sandboxes and tell ZenML of it.
            loop.call_soon_threadsafe(Event().wait)
            raise
        if not result.done():
            loop.call_soon_threadsafe(task.cancel)
        return result.result()
