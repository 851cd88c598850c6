"""One attempt at a step, or at a whole pipeline: sandbox, output, end, verdict, report.

Knows no Prefect. A sandbox that is lost is replaced here, within the attempt; whether the step is
tried again after a failure is decided by the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import UUID

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from bridge import names, step_runs, tracing
from bridge.again import Again, NotAsked
from bridge.errors import CapacityUnavailable, RunnerUnavailable, SandboxRefused
from bridge.outcome import (
    Cost,
    Diagnosis,
    End,
    Outcome,
    Reported,
    SandboxEnd,
    StepRecord,
    Verdict,
    answered,
    judge,
    refused,
    stopped_after,
)
from bridge.plan import StepPlan
from bridge.run import Run
from bridge.runners.base import OutputLine, Runner, Sandbox, SandboxRequest
from bridge.terminal import echo
from bridge.truth import Truth, ZenMLThread
from bridge.warm import WarmSteps

if TYPE_CHECKING:
    from bridge.logs import Logger  # which imports Prefect: a step operator's process may have none

T = TypeVar("T")

_asking = wait_exponential_jitter(initial=1, max=30)


class Output(Protocol):
    """Where the output of one attempt goes."""

    def last_words(self) -> str:
        """Return what a diagnosis may quote, "" if there is nothing."""

    def comes_from(self, key: str, sandbox_id: str, url: str | None) -> None:
        """Say which sandbox the output is of, before its first line; ``key`` is the name that it was asked for by."""

    def write(self, line: OutputLine) -> None:
        """Take one line. Never blocks."""

    def lost(self, what: str) -> None:
        """Say that the sandbox was lost, or couldn't be had, and what of."""

    def close(self) -> None:
        """Nothing more comes from this sandbox. Idempotent."""

    async def delivered(self) -> None:
        """Wait, for a bounded time, until what was written so far is where it is kept."""


@dataclass(frozen=True)
class Begun:
    """An attempt that an earlier process of the flow began, at a step or at the whole pipeline."""

    number: int
    """Which attempt, from 1."""
    sandbox: int
    """Its sandbox's number within the attempt, from 1."""
    record: StepRecord
    """What ZenML says of the step."""
    where: Sandbox | None
    """That sandbox, running or ended; for a warm step the one that it shares. None if nobody knows it any more."""
    lost: int = 0
    """How many sandboxes before it ended by the infrastructure's doing, in ``pipeline`` mode."""


_FORGOTTEN = SandboxEnd(End.LOST, detail="nobody knows any more what became of it after its flow had died")


@dataclass(frozen=True)
class _Place:
    """What a sandbox is wanted for: whose output it is, the attempt's key, seconds it may take; and if it is there."""

    who: str
    key: str
    timeout: int
    exists: bool = False


async def _is(it: T) -> T:
    return it


class Attempts:
    """Makes attempts for one run. One instance a flow run; used from its event loop only."""

    def __init__(self, run: Run, runner: Runner, thread: ZenMLThread, truth: Truth, warm: WarmSteps) -> None:
        self._run = run
        self._runner = runner
        self._thread = thread
        self._truth = truth
        self._warm = warm

    def expect(self, begun: Mapping[str, Begun]) -> None:
        """These are gone on with first: they may be in sandboxes that others want."""
        self._warm.expect({step: each.where.id for step, each in begun.items() if each.where is not None})

    async def attempt_step(
        self,
        step: StepPlan,
        number: int,
        task_run_id: UUID,
        kill: asyncio.Event,
        log: Output,
        logger: Logger,
        step_run_id: str | None = None,
        begun: Begun | None = None,
        over: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Make attempt ``number`` (from 1) at a step, and tell ZenML what it doesn't know of its end.

        ``kill`` ends it early. ``over`` is called when its sandbox has ended as one does whose step succeeded: what
        is left is to ask. ``step_run_id`` is the step run that it carries out, where there is one already.
        ``begun`` is this attempt as an earlier process left it: it is gone on with, or its end is judged. Raises only
        what is a defect or an outage beyond patience.
        """
        about: dict[str, str | int] = {
            names.SPAN_STEP: step.name,
            names.SPAN_ATTEMPT: number,
            names.SPAN_RUN_ID: self._run.id,
            names.SPAN_TASK_RUN_ID: str(task_run_id),
        }
        with tracing.span(f"attempt {step.name}", about) as noted:
            outcome = await self._attempt_step(step, number, task_run_id, kill, log, logger, step_run_id, begun, over)
            if outcome.verdict is not Verdict.SUCCEEDED:
                noted.failed(str(outcome.diagnosis or outcome.verdict.value))
            return outcome

    async def _attempt_step(
        self,
        step: StepPlan,
        number: int,
        task_run_id: UUID,
        kill: asyncio.Event,
        log: Output,
        logger: Logger,
        step_run_id: str | None,
        begun: Begun | None,
        over: Callable[[], None],
    ) -> Outcome:
        if begun is not None:
            before = StepRecord(version=number - 1)
            step_run_id = begun.record.step_run_id if begun.record.reported is Reported.RUNNING else None
        else:
            before = await self._truth.read(step.name) if number > 1 else StepRecord()
        first = begun.sandbox if begun is not None else 1
        again = Again(step.infrastructure_retries, step_run_id, kill, logger, log.lost, first)
        left = begun

        async def try_once() -> Outcome:
            nonlocal left
            continued = again.step_run_id
            arguments = (*step.command, *(("--step-run-id", continued) if continued else ()))
            command = self._runner.host_command(*arguments)
            found, left = left, None
            try:
                if found is not None and found.where is None:
                    end: SandboxEnd | Outcome = _FORGOTTEN
                else:
                    where = found.where if found is not None else None
                    with _sandbox_span() as noted:
                        request = self._run.step_request(step, command, task_run_id, number, again.sandbox)
                        end = await self._turn(step, continued, _traced(request), where, kill, log, logger)
                        _note_end(noted, end)
            except NotAsked as error:
                again.same_sandbox()
                end = SandboxEnd(End.NEVER_STARTED, detail=str(error))
            if isinstance(end, Outcome):
                # A step run that waits for this sandbox is the one that failed.
                return end if continued is None else replace(end, record=await self._truth.read(step.name))
            if end.end is End.EXITED and end.exit_code == 0:
                over()
            known = answered(end, before)
            asked = self._truth.read(step.name) if known is None else self._truth.in_order(known)
            record, _ = await asyncio.gather(asked, log.delivered())
            if record.version <= before.version:
                record = StepRecord()  # an earlier attempt's: this one never reached ZenML
            return judge(end, record, stop_requested=kill.is_set(), last_output=log.last_words, reports=step.reports)

        outcome = await again.until_it_is_not_lost(try_once)
        await self._report(step, outcome)
        return await self._unless_stopped(step, outcome, before)

    async def _unless_stopped(self, step: StepPlan, outcome: Outcome, before: StepRecord) -> Outcome:
        """Of a failure that ZenML was told here it may have taken nothing: the run was just being stopped.

        A step that began as another failed is refused its step run: it didn't fail, it came too late.
        """
        if outcome.verdict is not Verdict.FAILED or not outcome.needs_step_run:
            return outcome
        now = await self._truth.read(step.name)
        if now.version > before.version:
            return stopped_after(outcome, now) if now.reported is Reported.STOPPED else replace(outcome, record=now)
        if outcome.cost is not Cost.OWN_RETRY or outcome.record.reported is not Reported.NOTHING:
            return outcome
        diagnosis = Diagnosis(
            "The step didn't begin", "ZenML takes no new step of this run, which has failed or is stopping"
        )
        return Outcome(Verdict.STOPPED, Cost.NOTHING, outcome.record, diagnosis)

    async def _turn(
        self,
        step: StepPlan,
        step_run_id: str | None,
        request: SandboxRequest,
        left: Sandbox | None,
        kill: asyncio.Event,
        log: Output,
        logger: Logger,
    ) -> SandboxEnd | Outcome:
        try:
            start = self._warm.start(step, step_run_id, request, left)
            place = _Place(step.name, request.name, step.sandbox.timeout, exists=left is not None)
            return await self._sandbox(place, start, kill, log, logger)
        finally:
            self._warm.leave(step.name)

    def finish(self, step: str, *, done: bool) -> None:
        """No more attempts at this step: what is kept for it may go. Idempotent. ``done``: those below it may run."""
        self._warm.finish(step, done=done)

    def begin_no_more(self) -> None:
        """No step begins any more: what is kept for such may go."""
        self._warm.begin_no_more()

    async def _report(self, step: StepPlan, outcome: Outcome) -> None:
        run = self._run
        if outcome.verdict is Verdict.STOPPED:
            if outcome.record.step_run_id and outcome.needs_step_run:
                step_run_id = UUID(outcome.record.step_run_id)
                await self._thread.call(lambda: step_runs.record_stopped(step_run_id))
        elif outcome.needs_step_run and outcome.diagnosis is not None:
            diagnosis = outcome.diagnosis
            await self._thread.call(
                lambda: step_runs.record_failure(run.snapshot, run.run, run.stack, step.name, outcome.record, diagnosis)
            )
        elif outcome.needs_explaining and outcome.diagnosis is not None and outcome.record.step_run_id is not None:
            step_run_id, because = UUID(outcome.record.step_run_id), outcome.diagnosis
            await self._thread.call(lambda: step_runs.explain_failure(step_run_id, because))

    async def close_retries(self, step: str) -> None:
        """Tell ZenML that a step which it waits for won't be tried again."""
        run = self._run
        await self._thread.call(lambda: step_runs.close_retries(run.run, step))

    async def stop_retrying(self, step: str) -> None:
        """Tell ZenML the same of a step that was stopped."""
        run = self._run
        await self._thread.call(lambda: step_runs.stop_retrying(run.run, step))

    async def give_up(self, step: str, outcome: Outcome) -> Outcome:
        """Close the retries after a failed attempt and return what became of it: stopped in a run that stops."""
        await self.close_retries(step)
        now = await self._truth.read(step)
        return stopped_after(outcome, now) if now.reported is Reported.STOPPED else outcome

    async def attempt_pipeline(
        self,
        number: int,
        task_run_id: UUID,
        kill: asyncio.Event,
        log: Output,
        logger: Logger,
        begun: Begun | None = None,
    ) -> SandboxEnd | Outcome:
        """Make attempt ``number`` (from 1) at the whole pipeline in one sandbox; ``begun`` as in `attempt_step`."""
        if begun is not None and begun.where is None:
            return _FORGOTTEN
        plan = self._run.plan
        command = self._runner.host_command(*plan.command, "--run-id", self._run.id)
        with _sandbox_span() as noted:
            request = self._run.pipeline_request(command, task_run_id, number)
            left = begun.where if begun is not None else None
            start = self._runner.start(_traced(request)) if left is None else _is(left)
            place = _Place(plan.pipeline, request.name, plan.sandbox.timeout, exists=left is not None)
            end = await self._sandbox(place, start, kill, log, logger)
            _note_end(noted, end)
        await log.delivered()
        return end

    async def _sandbox(
        self,
        place: _Place,
        start: Coroutine[Any, Any, Sandbox],
        kill: asyncio.Event,
        log: Output,
        logger: Logger,
    ) -> SandboxEnd | Outcome:
        """Make a sandbox and stay with it to its end; an ``Outcome`` where it was never to be had.

        Raises ``NotAsked`` where nobody knows whether there is one.
        """
        try:
            # One that exists is seen to its end in any case: a kill ends it.
            sandbox = await start if place.exists else await _unless_killed(start, kill)
        except SandboxRefused as error:
            return refused(str(error))
        except CapacityUnavailable as error:
            return SandboxEnd(End.NEVER_STARTED, detail=str(error))
        except RunnerUnavailable as error:
            raise NotAsked(f"the runner couldn't be asked: {error}") from error
        if sandbox is None:
            return SandboxEnd(End.TERMINATED, detail="stopped before it started")
        logger.info("Sandbox %s%s", sandbox.id, f": {sandbox.url}" if sandbox.url else "")
        tracing.note({names.SPAN_SANDBOX_ID: sandbox.id})
        log.comes_from(place.key, sandbox.id, sandbox.url)
        output = asyncio.ensure_future(_pump(sandbox, log, logger, place.who))
        try:
            end = await self._stay(sandbox, place.timeout, kill)
            await output
            return end
        except asyncio.CancelledError:
            await asyncio.shield(sandbox.terminate())
            await output
            raise
        finally:
            # Else it would go on where nobody could be asked about the end, which it waits for.
            output.cancel()
            await asyncio.wait({output})
            log.close()

    async def _stay(self, sandbox: Sandbox, timeout: int, kill: asyncio.Event) -> SandboxEnd:
        ended = asyncio.ensure_future(while_it_may_live(sandbox.wait, timeout))
        killed = asyncio.ensure_future(kill.wait())
        try:
            await asyncio.wait({ended, killed}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await _terminate(sandbox, ended)
            return await ended
        finally:
            ended.cancel()
            killed.cancel()


def _sandbox_span() -> AbstractContextManager[tracing.Noted]:
    return tracing.span("sandbox", {})


def _traced(request: SandboxRequest) -> SandboxRequest:
    return replace(request, environment={**request.environment, **tracing.environment()})


def _note_end(noted: tracing.Noted, end: SandboxEnd | Outcome) -> None:
    if isinstance(end, Outcome):  # it was never to be had
        noted.failed(str(end.diagnosis or end.verdict.value))
        return
    noted.note({names.SPAN_SANDBOX_END: str(end)})
    if end.end is not End.EXITED or end.exit_code != 0:
        noted.failed(str(end))


async def _unless_killed(start: Coroutine[Any, Any, Sandbox], kill: asyncio.Event) -> Sandbox | None:
    """Start a sandbox, which may wait long for a machine; None where it was killed meanwhile."""
    if kill.is_set():
        start.close()
        return None
    started = asyncio.ensure_future(start)
    killed = asyncio.ensure_future(kill.wait())
    try:
        await asyncio.wait({started, killed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        killed.cancel()
        if not started.done():
            started.cancel()  # which leaves no sandbox behind
            await asyncio.wait({started})
    return None if started.cancelled() else started.result()


async def _terminate(sandbox: Sandbox, ended: asyncio.Future[SandboxEnd]) -> None:
    """End it, asking again as long as it could still be alive."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(RunnerUnavailable),
        wait=_asking,
        stop=lambda _: ended.done(),
        reraise=True,
    ):
        with attempt:
            await sandbox.terminate()


async def while_it_may_live(ask: Callable[[], Awaitable[T]], timeout: int) -> T:
    """Return what the runner answers of a sandbox, asking again as long as it could still be alive.

    Raises ``RunnerUnavailable`` after that.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(RunnerUnavailable),
        wait=_asking,
        stop=stop_after_delay(timeout + 600),
        reraise=True,
    ):
        with attempt:
            return await ask()
    raise AssertionError("unreachable: tenacity returns or raises")


async def _pump(sandbox: Sandbox, log: Output, logger: Logger, who: str) -> None:
    """Read its output to the end, whatever becomes of the lines: a sandbox that nobody reads may wait for that."""
    told = False
    try:
        async for line in sandbox.output():
            try:
                log.write(line)
            except Exception as error:
                if not told:
                    logger.warning("Lines of this sandbox's output are lost: %s: %s", type(error).__name__, error)
                told = True
            echo(who, line.text)
    except RunnerUnavailable as error:
        logger.warning("The rest of this sandbox's output can't be read: %s", error)
