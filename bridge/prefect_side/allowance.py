"""Prefect Cloud counts log records by the minute, and refuses those beyond a plan's number: so few records have to
carry many lines. Pure, but for the clock that it is given."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from prefect.client.schemas.actions import LogCreate

CLOUD_RECORDS_A_MINUTE = 1500
"""Prefect Cloud's smallest plan takes 2,000 a minute, of which Prefect's own logs need some."""
RECORD_CHARACTERS = 20_000
"""Prefect Cloud takes 25,000 a record."""
MINUTE = 60.0


class Allowance:
    """How many records may still be sent now; ``per_minute`` None is any number."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._sent: deque[tuple[float, int]] = deque()

    def left(self) -> int | None:
        """How many records may be sent now, None for any number."""
        if self._per_minute is None:
            return None
        while self._sent and self._sent[0][0] <= self._clock() - MINUTE:
            self._sent.popleft()
        return max(0, self._per_minute - sum(count for _, count in self._sent))

    def use(self, records: int) -> None:
        """Count records as sent."""
        if self._per_minute is not None:
            self._sent.append((self._clock(), records))

    def seconds(self) -> float:
        """How long until there are more."""
        return max(0.0, self._sent[0][0] + MINUTE - self._clock()) if self._sent else 0.0


def take_coalesced(lines: deque[LogCreate], most: int, characters: int) -> list[LogCreate]:
    """Take lines off the front and return at most ``most`` records that carry them, in the order of their first lines.

    Lines of one task run and logger share a record, with the time of the first, as long as they fit. Takes
    ``characters`` or a little more, and a line only if there is a record for it.
    """
    records: list[LogCreate] = []
    texts: list[list[str]] = []
    open_at: dict[object, int] = {}
    lengths: list[int] = []
    size = 0
    while lines and size < characters:
        line = lines[0]
        at = open_at.get((line.task_run_id, line.name))
        if at is None or lengths[at] + len(line.message) >= RECORD_CHARACTERS:
            if len(records) == most:
                break
            at = open_at[line.task_run_id, line.name] = len(records)
            records.append(line)
            texts.append([])
            lengths.append(0)
        lines.popleft()
        texts[at].append(line.message)
        lengths[at] += len(line.message) + 1
        size += len(line.message) + 1
    return [record.model_copy(update={"message": "\n".join(text)}) for record, text in zip(records, texts, strict=True)]
