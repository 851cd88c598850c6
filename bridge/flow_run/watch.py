"""Seeing that a run is to end early, and ending it.

Nobody tells a flow: a cancel in Prefect's UI only changes a flow run's state (a worker sends a signal besides), and
a stop in ZenML only a run's status. So both are asked, every few seconds, for as long as the flow runs. What they
say, and a signal to this process, becomes one :class:`Stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from zenml.client import Client
from zenml.enums import ExecutionStatus

from bridge.awaiting import set_within
from bridge.flow_run.outcome import Reported
from bridge.flow_run.run import Run
from bridge.plan import Mode
from bridge.zenml_side import run_status, step_runs
from bridge.zenml_side.zenml_calls import ZenMLCalls

PREFECT_SECONDS = 2.0
ZENML_SECONDS = 4.0
GRACE_SECONDS = 30.0
"""How long running steps may go on once the run is drained; ZenML's heartbeat interrupts them within 15 s."""
ANNOUNCE_SECONDS = 3.0
"""How long a kill waits until ZenML has heard of it."""

CANCELLED = "it was cancelled in Prefect"

_logger = logging.getLogger(__name__)


def cancelled_before(states: Iterable[State[object]]) -> bool:
    """Whether a flow run was cancelled, and no process has ended it since.

    ``states`` are all states of the flow run. A process that begins makes it Running whatever it was, and one that was
    found dead was made Crashed and Scheduled before: the cancel is in the history alone then. It is over once the flow
    run has had another end, or was Cancelled and somebody scheduled it again after that.
    """
    scheduled = False
    for state in sorted(states, key=lambda state: state.timestamp, reverse=True):
        if state.is_cancelling():
            return True
        if state.is_cancelled():
            return not scheduled
        if state.is_paused() or (state.is_final() and not state.is_crashed()):
            return False
        scheduled = scheduled or state.is_scheduled()
    return False


class Stop:
    """A wish that the run ends early. Two grades: drain, no new step starts; kill, what runs ends at once.

    The first reason counts. One event loop.
    """

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.killing = asyncio.Event()
        self.reason = ""
        self.failure = ""
        """Why the run counts as failed rather than stopped; "" if it doesn't."""

    @property
    def requested(self) -> bool:
        """Whether the run is to end early."""
        return self.draining.is_set()

    def drain(self, reason: str) -> None:
        """Start nothing new; what runs has ``GRACE_SECONDS``."""
        self.reason = self.reason or reason
        self.draining.set()

    def kill(self, reason: str) -> None:
        """End everything now."""
        self.drain(reason)
        self.killing.set()

    def fail(self, reason: str) -> None:
        """End everything now, the run being failed already."""
        self.failure = self.failure or reason
        self.kill(reason)


class Watch:
    """Watches both sides of one run. Use as ``async with``; it never fails the run."""

    def __init__(self, stop: Stop, client: PrefectClient, run: Run) -> None:
        self._stop = stop
        self._client = client
        self._run = run
        # Of its own, and without patience: the next look comes soon, and one that hangs must not hold up the end.
        self._thread = ZenMLCalls(patience=0.0)
        self._tasks: list[asyncio.Task[None]] = []
        self._looked_back = False

    async def __aenter__(self) -> Watch:
        looks = ((self._look_at_prefect, PREFECT_SECONDS), (self._look_at_zenml, ZENML_SECONDS))
        self._tasks = [asyncio.ensure_future(self._keep_looking(look, seconds)) for look, seconds in looks]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._thread.close()

    async def carry_out(self, drain: Callable[[str], None], kill: Callable[[str], None]) -> None:
        """Wait for a stop and carry it out, in two steps where it leaves time for that. Cancel it at the run's end."""
        stop = self._stop
        await stop.draining.wait()
        drain(stop.reason)
        if not stop.killing.is_set():
            await self._tell("interrupt the steps", lambda: run_status.interrupt_steps(self._run.run))
        await set_within(stop.killing, GRACE_SECONDS)
        await self._announce()
        stop.kill(stop.reason)
        kill(stop.reason)

    async def _announce(self) -> None:
        # Before any sandbox ends: a step that dies in a run which isn't stopping would be retried, or fail the run.
        if not self._stop.failure:
            await self._tell("say that the run is stopping", lambda: run_status.begin_stop(self._run.run))

    async def _tell(self, what: str, tell: Callable[[], None]) -> None:
        try:
            await asyncio.wait_for(self._thread.call(tell), ANNOUNCE_SECONDS)
        except Exception as error:
            # The sandboxes end whether or not ZenML can be told; the end of the run is told patiently.
            _logger.warning("Couldn't %s in ZenML: %s: %s", what, type(error).__name__, error)

    async def _keep_looking(self, look: Callable[[], Awaitable[None]], seconds: float) -> None:
        away = False
        while not self._stop.killing.is_set():
            try:
                await look()
                away = False
            except Exception as error:
                # Whatever the reason, that one can't ask says nothing about the run.
                if not away:
                    _logger.warning("Can't see whether the run was stopped (%s); asking again.", _first_line(error))
                away = True
            await asyncio.sleep(seconds)

    async def cancelled_already(self) -> bool:
        """Whether the flow run was cancelled before this process began. Raises what Prefect's client raises."""
        states = await self._client.read_flow_run_states(UUID(self._run.flow_run_id))
        self._looked_back = True
        return cancelled_before(states)

    async def _look_at_prefect(self) -> None:
        try:
            if not self._looked_back and await self.cancelled_already():
                self._stop.kill(CANCELLED)
                return
            flow_run = await self._client.read_flow_run(UUID(self._run.flow_run_id))
        except ObjectNotFound:
            self._stop.kill("its flow run was deleted in Prefect")
            return
        state = flow_run.state
        if state is not None and (state.is_cancelling() or state.is_cancelled()):
            self._stop.kill(CANCELLED)

    async def _look_at_zenml(self) -> None:
        run = self._run.run
        status = await self._thread.call(lambda: run_status.status_of(run))
        if status is None:
            self._stop.kill("its ZenML run was deleted")
        elif status is ExecutionStatus.STOPPING:
            self._stop.drain("it was stopped in ZenML")
        elif status is ExecutionStatus.STOPPED:
            self._stop.kill("it was stopped in ZenML")
        elif status is ExecutionStatus.FAILED and not await self._has_failed_step():
            self._stop.fail("ZenML's run was marked as failed from outside")

    async def _has_failed_step(self) -> bool:
        """Whether a step made the run fail: then the failure mode says what that means for the others."""
        if self._run.plan.mode is Mode.DYNAMIC:
            # Its own function did, whose exception it is; who marks a run as failed has none.
            now = await self._thread.call(lambda: Client().zen_store.get_run(self._run.run.id))
            return now.exception_info is not None
        run, steps = self._run.run, [step.name for step in self._run.plan.steps]
        records = await self._thread.call(lambda: step_runs.latest(run, steps))
        return any(record.reported in (Reported.FAILED, Reported.RETRYING) for record in records.values())


@contextlib.asynccontextmanager
async def carried_out(
    watch: Watch, *, drain: Callable[[str], None], kill: Callable[[str], None]
) -> AsyncIterator[None]:
    """Carry out a stop that comes while the body runs."""
    task = asyncio.ensure_future(watch.carry_out(drain, kill))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
