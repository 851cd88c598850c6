"""Sandbox output on its way into Prefect's task-run logs.

Prefect's own logging handler takes one line at a time through a thread (20,000 lines drain in 30 s); here lines
of all steps travel in posts of up to 500 with their original times (7 s for the same 20,000). A step's output
is bounded: its first lines and its last ones are kept, and one line says how many were left out between.

Prefect's logs are also what a flow that comes back after a crash goes by (:mod:`bridge.flow_run.said`): each record is
named after the attempt whose output it is, so lines that are there already aren't sent again, and the first record of
an attempt says which sandbox it is in.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TypeAlias
from uuid import UUID

from prefect.client.base import ServerType
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import LogCreate
from tenacity import AsyncRetrying, retry_if_exception, stop_never, wait_exponential_jitter

from bridge import names
from bridge.awaiting import set_within
from bridge.flow_run.last_words import LastWords
from bridge.prefect_side.allowance import CLOUD_RECORDS_A_MINUTE, Allowance, take_coalesced
from bridge.prefect_side.outage import is_passing
from bridge.watching.output import OutputLine

BATCH_LINES = 500
BATCH_CHARACTERS = 1_000_000
FIRST_LINES = 10_000
"""Lines of one attempt that are sent as they come; Prefect Cloud's free plan takes 2,000 a minute."""
LAST_LINES = 500
"""Lines of its end that are kept beyond those."""
WAITING_LINES = 50_000
"""Lines of all steps that may wait while Prefect's API can't be reached."""
FLUSH_SECONDS = 0.5
DELIVERY_SECONDS = 5.0
"""How long the end of a step waits for its last lines to reach Prefect."""

Logger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"
"""What Prefect hands out as a run's logger; as text, since Python 3.10 can't subscript the adapter."""

OnSandbox = Callable[[str, str | None], None]
OnLost = Callable[[str], None]

_logger = logging.getLogger(__name__)


class StepLog:
    """The output of one attempt of a step, bounded. Made by :meth:`LogShipper.open`."""

    def __init__(
        self,
        shipper: LogShipper,
        task_run_id: UUID,
        send: bool = True,
        on_sandbox: OnSandbox | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        self._on_sandbox = on_sandbox
        self._on_lost = on_lost
        self._shipper = shipper
        self._send = send
        self._task_run_id = task_run_id
        self._sent = 0
        self._left_out = 0
        self._last: deque[OutputLine] = deque()
        self._key = ""
        self._known: Counter[int] = Counter()
        self._last_words = LastWords()

    def last_words(self) -> str:
        """Return what a diagnosis may quote, "" if there is nothing."""
        return self._last_words.telling()

    def comes_from(self, key: str, sandbox_id: str, url: str | None) -> None:
        """Say which sandbox the output is of, before its first line; ``key`` is the name that it was asked for by.

        Lines of it that Prefect has already, by what the shipper knows, aren't sent again.
        """
        self._key, self._known = key, self._shipper.known.pop(key, Counter())
        if self._on_sandbox is not None:
            self._on_sandbox(sandbox_id, url)
        begin = OutputLine(sandbox_line(sandbox_id), "stdout", datetime.now(timezone.utc))
        self._put(begin, names.attempt_logger(key))

    def lost(self, what: str) -> None:
        """Say that the sandbox was lost, or couldn't be had, and what of."""
        if self._on_lost is not None:
            self._on_lost(what)

    def write(self, line: OutputLine) -> None:
        """Take one line. Never blocks."""
        self._last_words.add(line.text)
        if not self._send:
            return
        if self._sent < FIRST_LINES:
            self._sent += 1
            self._put(line)
            return
        self._last.append(line)
        if len(self._last) > LAST_LINES:
            self._last.popleft()
            self._left_out += 1

    def close(self) -> None:
        """Send the last lines. Idempotent."""
        if self._left_out and self._last:
            note = f"... {self._left_out:,} lines left out here; the first {FIRST_LINES:,} and the last are kept"
            self._put(OutputLine(note, "stderr", self._last[0].time))
            self._left_out = 0
        while self._last:
            self._put(self._last.popleft())

    async def delivered(self) -> None:
        """Wait until Prefect has what was written so far, ``DELIVERY_SECONDS`` at most."""
        await self._shipper.delivered()

    def _put(self, line: OutputLine, logger: str = "") -> None:
        fingerprint = hash(line.text or " ")
        if self._known[fingerprint] > 0:
            self._known[fingerprint] -= 1
            return
        self._shipper.put(line, self._task_run_id, logger or names.output_logger(self._key))


def sandbox_line(sandbox_id: str) -> str:
    """Return the line that says which sandbox an attempt's output is of; :func:`sandbox_of_line` reads it."""
    return f"Output of sandbox {sandbox_id}"


def sandbox_of_line(text: str) -> str:
    """Return the sandbox's id from a line that :func:`sandbox_line` made."""
    return text.rpartition(" ")[2]


class LogShipper:
    """Sends lines to Prefect in batches. Use as ``async with``; leaving sends what is left.

    While the API can't be reached, lines wait, ``WAITING_LINES`` at most; then the oldest are dropped and counted.
    Where it counts records (Prefect Cloud), lines of a task run share records once there are more of them than
    records left in this minute.
    """

    def __init__(
        self,
        client: PrefectClient,
        flow_run_id: UUID,
        *,
        closing_seconds: float = 30.0,
        allowance: Allowance | None = None,
    ) -> None:
        cloud = client.server_type is ServerType.CLOUD
        self._allowance = allowance or Allowance(CLOUD_RECORDS_A_MINUTE if cloud else None)
        self._in_flight = 0
        self._client = client
        self._flow_run_id = flow_run_id
        self._closing_seconds = closing_seconds
        self._lines: deque[LogCreate] = deque(maxlen=WAITING_LINES)
        self._dropped = 0
        self._more = asyncio.Event()
        self._closing = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._latest: dict[UUID, datetime] = {}
        self._hurry = asyncio.Event()
        self._queued = self._gone = 0
        self._progress = asyncio.Event()
        self.known: dict[str, Counter[int]] = {}
        """By attempt: hashes of the lines that Prefect has from an earlier process of this flow run."""

    async def __aenter__(self) -> LogShipper:
        self._sender = asyncio.ensure_future(self._send_all())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._hurry.set()
        self._more.set()
        if self._sender is None:
            return
        try:
            await asyncio.wait_for(self._sender, self._closing_seconds)
        except asyncio.TimeoutError:
            _logger.warning(
                "%d log lines of flow run %s were not sent: Prefect's API did not take them within %.0f s.",
                len(self._lines) + self._in_flight,
                self._flow_run_id,
                self._closing_seconds,
            )

    def open(
        self,
        task_run_id: UUID,
        *,
        send: bool = True,
        on_sandbox: OnSandbox | None = None,
        on_lost: OnLost | None = None,
    ) -> StepLog:
        """Begin the output of one attempt; without ``send`` only its tail is kept.

        ``on_sandbox`` is told the id and page of each sandbox that the output comes from, ``on_lost`` of each that was
        lost.
        """
        return StepLog(self, task_run_id, send, on_sandbox, on_lost)

    async def delivered(self) -> None:
        """Wait until everything that was put so far is sent or refused, ``DELIVERY_SECONDS`` at most."""
        most = self._queued
        deadline = asyncio.get_running_loop().time() + DELIVERY_SECONDS
        while self._gone < most and asyncio.get_running_loop().time() < deadline:
            self._hurry.set()
            await set_within(self._progress, deadline - asyncio.get_running_loop().time())

    def _left_the_queue(self, lines: int) -> None:
        self._gone += lines
        self._progress.set()
        self._progress = asyncio.Event()

    def put(self, line: OutputLine, task_run_id: UUID, logger: str) -> None:
        """Queue one line, as a record of that logger. Never blocks."""
        self._queued += 1
        if len(self._lines) == WAITING_LINES:
            self._dropped += 1
            self._left_the_queue(1)
        # Prefect orders a run's logs by time alone: lines of one moment would come back shuffled.
        time = line.time
        latest = self._latest.get(task_run_id)
        if latest is not None and time <= latest:
            time = latest + timedelta(microseconds=1)
        self._latest[task_run_id] = time
        self._lines.append(
            LogCreate(
                name=logger,
                level=logging.INFO,
                message=line.text or " ",
                timestamp=time,
                flow_run_id=self._flow_run_id,
                task_run_id=task_run_id,
            )
        )
        self._more.set()

    async def _send_all(self) -> None:
        while True:
            await self._more.wait()
            if len(self._lines) < BATCH_LINES:
                # Lines come in bursts; what arrives within this moment travels together.
                await set_within(self._hurry, FLUSH_SECONDS)
            self._more.clear()
            while self._lines:
                before = len(self._lines)
                batch = self._next_batch()
                taken = before - len(self._lines)
                if batch:
                    await self._send(batch)
                    self._left_the_queue(taken)
                elif not self._closing.is_set():
                    await set_within(self._closing, self._allowance.seconds())
            if not self._closing.is_set():
                self._hurry.clear()
            if self._dropped:
                _logger.warning("%d log lines were dropped while Prefect's API was away.", self._dropped)
                self._dropped = 0
            if self._closing.is_set() and not self._lines:
                return

    def _next_batch(self) -> list[LogCreate]:
        left = self._allowance.left()
        if left is not None and len(self._lines) > left:
            # At the end the cap counts less than the last lines, of which each record takes hundreds.
            most = min(BATCH_LINES, max(left, 50) if self._closing.is_set() else left)
            return take_coalesced(self._lines, most, BATCH_CHARACTERS)
        batch: list[LogCreate] = []
        size = 0
        while self._lines and len(batch) < BATCH_LINES and size < BATCH_CHARACTERS:
            line = self._lines.popleft()
            size += len(line.message)
            batch.append(line)
        return batch

    async def _send(self, batch: list[LogCreate]) -> None:
        self._in_flight = len(batch)
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(is_passing),
                wait=wait_exponential_jitter(initial=0.5, max=10),
                stop=stop_never,
                reraise=True,
            ):
                with attempt:
                    await self._client.create_logs(batch)
            self._allowance.use(len(batch))
        except Exception as error:
            # Asked again, Prefect would refuse them again, and no run is worth its logs.
            _logger.warning("Prefect refused %d log lines: %s: %s", len(batch), type(error).__name__, error)
        self._in_flight = 0
