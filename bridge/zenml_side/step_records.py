"""ZenML's records of steps, read from an event loop: steps that end at the same moment in one query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from uuid import UUID

from bridge.flow_run.outcome import StepRecord
from bridge.zenml_side.open_questions import OpenQuestions
from bridge.zenml_side.step_runs import record_of
from bridge.zenml_side.zenml_calls import ZenMLCalls


class StepRecords:
    """Reads step records, many at a time.

    Args:
        calls: Where ZenML is called.
        latest: ``step_runs.latest`` of one run.
    """

    def __init__(self, calls: ZenMLCalls, latest: Callable[[Sequence[str]], dict[str, StepRecord]]) -> None:
        self._calls = calls
        self._latest = latest
        self._asked: dict[str, asyncio.Future[StepRecord]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._questions = OpenQuestions()

    @classmethod
    def of_step_run(cls, calls: ZenMLCalls, step_run_id: UUID) -> StepRecords:
        """Read this very step run: its step's next attempt may be there before this one's end is judged."""
        return cls(calls, lambda steps: dict.fromkeys(steps, record_of(step_run_id)))

    async def read(self, step: str) -> StepRecord:
        """Return ZenML's newest record of ``step``, read after this call began."""
        future = self._asked.get(step)
        if future is None:
            future = self._asked[step] = asyncio.get_running_loop().create_future()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.ensure_future(self._read_all())
        return await self._questions.asked(future)

    async def in_order(self, record: StepRecord) -> StepRecord:
        """Return a record that needs no question, once everything is answered that is being asked now."""
        await self._questions.all_answered()
        return record

    async def _read_all(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                records = await self._calls.call(lambda asked=asked: self._latest(list(asked)))  # type: ignore[misc]
            except Exception as error:
                for future in asked.values():
                    future.set_exception(error)
            else:
                for step, future in asked.items():
                    future.set_result(records.get(step, StepRecord()))
