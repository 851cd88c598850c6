"""Which questions to ZenML about steps are open, so that an answer that needs none overtakes no other.

A success that a step's process has passed on is known at once; the failure of another step that came before it may
still be asked about. Who heard of the success first would begin a step that has no place any more.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


class OpenQuestions:
    """The questions that are being asked now. One event loop."""

    def __init__(self) -> None:
        self._open: set[asyncio.Future[object]] = set()

    async def asked(self, question: asyncio.Future[T]) -> T:
        """Return the answer to a question, or raise what it raises. It is open until then, also where this is
        cancelled."""
        if question not in self._open:
            self._open.add(question)  # type: ignore[arg-type]  # nobody sets it through here
            question.add_done_callback(self._open.discard)
        return await asyncio.shield(question)

    async def all_answered(self) -> None:
        """Wait until those that are open now have their answers, whatever these are."""
        if self._open:
            await asyncio.wait(set(self._open))
