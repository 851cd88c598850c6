"""Asked twice at the same time for the same thing, make it once; cancelled in the middle, undo it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")


@dataclass
class _Making(Generic[Made]):
    task: asyncio.Task[Made]
    callers: int = 0


class Once(Generic[Key, Made]):
    """Callers with an equal key share one making of it. Belongs to one event loop.

    A making is never cancelled in the middle, where nobody could say what exists already. If all its callers
    were cancelled, it ends and its result is undone; the last caller's cancellation waits for that.
    """

    def __init__(self, undo: Callable[[Made], Awaitable[None]]) -> None:
        self._undo = undo
        self._making: dict[Key, _Making[Made]] = {}
        self._undoing: set[asyncio.Task[None]] = set()

    async def make(self, key: Key, make: Callable[[], Coroutine[Any, Any, Made]]) -> Made:
        """Return what ``make`` returns, or what an equal call under way returns. Raises what it raises."""
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = _Making(asyncio.create_task(make()))
            making.task.add_done_callback(lambda _: self._making.pop(key, None))
        making.callers += 1
        try:
            return await asyncio.shield(making.task)
        except asyncio.CancelledError:
            making.callers -= 1
            if not making.callers:
                undoing = asyncio.create_task(self._undo_made(making))
                self._undoing.add(undoing)
                undoing.add_done_callback(self._undoing.discard)
                await asyncio.shield(undoing)
            raise

    async def settled(self) -> None:
        """Wait until everything that is being made or undone is."""
        while self._making or self._undoing:
            await asyncio.wait([*(making.task for making in self._making.values()), *self._undoing])

    async def _undo_made(self, making: _Making[Made]) -> None:
        await asyncio.wait([making.task])
        wanted_again = making.callers > 0
        if not wanted_again and not making.task.cancelled() and making.task.exception() is None:
            await self._undo(making.task.result())
