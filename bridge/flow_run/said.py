"""What Prefect's logs say of an earlier process of the same flow run: which sandbox each attempt was in, and which of
its lines are there. :mod:`bridge.watching.logs` wrote it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterTaskRunId
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort

from bridge import names
from bridge.prefect_side import prefect_pages
from bridge.watching.logs import sandbox_of_line

_AT_ONCE = 8


@dataclass(frozen=True)
class Said:
    """What is in the logs, by attempt: the name that its sandbox was asked for by."""

    sandboxes: dict[str, str] = field(default_factory=dict)
    """The id of the sandbox it was in last."""
    lines: dict[str, Counter[int]] = field(default_factory=dict)
    """How often each line is there, by the line's hash in this process."""

    def add(self, log: Log) -> None:
        """Take in one record, which may carry several lines."""
        key, is_output = names.attempt_of_logger(log.name)
        if not key:
            return
        self.lines.setdefault(key, Counter()).update(hash(line) for line in log.message.split("\n"))
        if not is_output:
            self.sandboxes[key] = sandbox_of_line(log.message)


async def read_said(client: PrefectClient, task_run_ids: Iterable[UUID]) -> Said:
    """Read the logs of these task runs; an API that is away is asked again. Raises what Prefect's client raises."""
    said = Said()
    room = asyncio.Semaphore(_AT_ONCE)

    async def read(task_run_id: UUID) -> None:
        chosen = LogFilter(task_run_id=LogFilterTaskRunId(any_=[task_run_id]))
        async with room:
            async for log in prefect_pages.each_patiently(
                partial(client.read_logs, chosen, sort=LogSort.TIMESTAMP_ASC)
            ):
                said.add(log)

    await asyncio.gather(*(read(task_run_id) for task_run_id in task_run_ids))
    return said
