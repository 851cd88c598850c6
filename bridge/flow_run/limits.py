"""Prefect's global concurrency limits: each running step holds one slot of the limit that it names.

Slow by nature (taking and giving back a free slot costs 86 ms, and nobody is told when one comes free), so this is
for limits across runs on steps that last minutes; ``max_parallelism`` is for the steps of one run.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shlex
from collections.abc import AsyncIterator
from typing import Protocol
from uuid import UUID

import httpx
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.exceptions import ObjectNotFound

from bridge import names
from bridge.awaiting import set_within
from bridge.errors import InvalidSettings
from bridge.plan import Plan
from bridge.prefect_side.prefect_api import prefect_api
from bridge.watching.logs import Logger

LEASE_SECONDS = 120.0
"""A slot comes free this long after its holder was killed. The holder renews it as long as it lives."""
ASK_SECONDS = 1.0
"""How often one run asks for a slot, however many of its steps wait."""
LONGEST_PAUSE_SECONDS = 10.0


class LimitMissing(InvalidSettings):
    """Prefect has no limit of that name; in the middle of a run: not any more."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "concurrency_limit",
            name,
            "Prefect has no global concurrency limit of this name",
            f"Make it with `prefect gcl create {shlex.quote(name)} --limit <slots>`, or leave concurrency_limit out",
        )

    def __reduce__(self) -> tuple[type[LimitMissing], tuple[str]]:  # type: ignore[override]
        return type(self), (str(self.value),)


class Permit(Protocol):
    """What may end the wait for a slot: see :class:`bridge.flow_run.ready.Pass`."""

    kill: asyncio.Event
    last_attempt: bool


def check_limits(plan: Plan) -> None:
    """Check that the limits which a run will need exist. Raises what :func:`check_limit` raises."""
    named = (plan.concurrency_limit, *(step.concurrency_limit for step in plan.steps))
    for name in sorted({name for name in named if name is not None}):
        check_limit(name)


def check_limit(name: str) -> None:
    """Raise ``LimitMissing`` if Prefect has no global concurrency limit of that name, ``PrefectUnavailable``."""
    with prefect_api() as client:
        try:
            client.read_global_concurrency_limit_by_name(names.url_segment(name))
        except ObjectNotFound:
            raise LimitMissing(name) from None


class Limits:
    """Takes slots for the steps of one run. One event loop."""

    def __init__(self) -> None:
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def slot(
        self, limit: str | None, permit: Permit, task_run_id: UUID, logger: Logger, *, goes_on: bool = False
    ) -> AsyncIterator[bool]:
        """Hold a slot of ``limit`` inside; yields False, with none, where the wait for it was given up.

        Without a limit there is nothing to wait for. The wait holds the step's place among the run's own
        ``max_parallelism``. An attempt that ``goes_on``, an earlier process having begun it, waits on where nothing
        new may start. Raises ``LimitMissing``. The slot is given back at the end, or comes free when its lease
        ends, where Prefect can't be reached or this process is gone.
        """
        if limit is None:
            yield True
            return
        held = await self._take(limit, permit, task_run_id, logger, goes_on)
        try:
            yield held is not None
        finally:
            if held is not None:
                await _give_back(held, limit, logger)

    @contextlib.asynccontextmanager
    async def slot_meanwhile(
        self, limit: str | None, permit: Permit, task_run_id: UUID, logger: Logger
    ) -> AsyncIterator[None]:
        """Hold a slot of ``limit`` inside, as soon as one is free: for a step that runs already, with the slot of a
        process that died, which comes free when its lease ends. Raises nothing of its own."""

        async def hold() -> None:
            async with self.slot(limit, permit, task_run_id, logger):
                await asyncio.Event().wait()

        holding = asyncio.ensure_future(hold())
        try:
            yield
        finally:
            holding.cancel()
            await asyncio.wait({holding})
            if not holding.cancelled() and (error := holding.exception()) is not None:
                logger.warning("The step ran without a slot of the concurrency limit %s: %s", limit, error)

    async def _take(
        self, limit: str, permit: Permit, task_run_id: UUID, logger: Logger, goes_on: bool
    ) -> contextlib.AbstractAsyncContextManager[None] | None:
        self._waiting += 1
        said = False
        try:
            while not permit.kill.is_set() and (goes_on or not permit.last_attempt):
                held = _slot(limit, task_run_id)
                try:
                    await held.__aenter__()
                    return held
                except ConcurrencySlotAcquisitionError as error:
                    if error.__cause__ is None:
                        raise LimitMissing(limit) from error
                    if not said:
                        logger.info("Waits for a slot of the concurrency limit %s: %s", limit, _why(error))
                    said = True
                pause = min(LONGEST_PAUSE_SECONDS, ASK_SECONDS * self._waiting) * random.uniform(0.5, 1.5)
                await set_within(permit.kill, pause)
            return None
        finally:
            self._waiting -= 1


def _slot(limit: str, task_run_id: UUID) -> contextlib.AbstractAsyncContextManager[None]:
    return concurrency(
        limit,
        occupy=1,
        max_retries=0,  # Prefect's own wait can't be interrupted, and its queue would hold up the others
        lease_duration=LEASE_SECONDS,
        strict=True,
        holder=ConcurrencyLeaseHolder(type="task_run", id=task_run_id),
        raise_on_lease_renewal_failure=False,  # an outage of Prefect is no reason to end a step
    )


async def _give_back(held: contextlib.AbstractAsyncContextManager[None], limit: str, logger: Logger) -> None:
    try:
        await held.__aexit__(None, None, None)
    except Exception as error:
        # The step is done, whatever Prefect says; the lease frees the slot.
        logger.warning(
            "The slot of the concurrency limit %s couldn't be given back (%s: %s); it comes free within %.0f s.",
            limit,
            type(error).__name__,
            error,
            LEASE_SECONDS,
        )


def _why(error: ConcurrencySlotAcquisitionError) -> str:
    cause = error.__cause__
    if isinstance(cause, httpx.HTTPStatusError):
        return (
            "all are taken." if cause.response.status_code == 423 else f"Prefect answers {cause.response.status_code}."
        )
    return f"Prefect can't be reached ({type(cause).__name__})."
