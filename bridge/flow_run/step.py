"""One attempt at a step, or at a whole pipeline: sandbox, output, end, verdict, report.

Knows no Prefect. A sandbox that is lost is replaced here, within the attempt; whether the step is
tried again after a failure is decided by the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from bridge import names, tracing
from bridge.errors import CapacityUnavailable, RunnerUnavailable, SandboxRefused
from bridge.flow_run.again import Again, NotAsked
from bridge.flow_run.outcome import (
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
from bridge.flow_run.run import Run
from bridge.plan import StepPlan
from bridge.runners.base import Runner, Sandbox, SandboxRequest
from bridge.runners.patience import terminate, while_it_may_live
from bridge.warming.warm import WarmSteps, itself
from bridge.watching.output import OutputLine
from bridge.watching.terminal import echo
from bridge.zenml_side import step_runs
from bridge.zenml_side.step_records import StepRecords
from bridge.zenml_side.zenml_calls import ZenMLCalls

if TYPE_CHECKING:
    from bridge.watching.logs import Logger  # which imports Prefect: a step operator's process may have none


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
class Attempt:
    """What an attempt is made of, at a step or at the whole pipeline."""

    number: int
    """Which attempt, from 1."""
    task_run_id: UUID
    """The task run that it is part of; its sandbox's process is told."""
    kill: asyncio.Event
    """Ends it early."""
    output: Output
    """Where its output goes."""
    logger: Logger
    """Where is said what happens to its sandboxes."""
    step_run_id: str | None = None
    """The step run that it carries out, where there is one already."""
    begun: Begun | None = None
    """This attempt as an earlier process left it: it is gone on with, or its end is judged."""
    over: Callable[[], None] = lambda: None
    """Called when the sandbox of a step has ended as one does whose step succeeded: what is left is to ask."""


@dataclass(frozen=True)
class _Place:
    """What a sandbox is wanted for: whose output it is, the attempt's key, seconds it may take; and if it is there."""

    who: str
    key: str
    timeout: int
    exists: bool = False


class Attempts:
    """Makes attempts for one run. One instance a flow run; used from its event loop only."""

    def __init__(self, run: Run, runner: Runner, thread: ZenMLCalls, truth: StepRecords, warm: WarmSteps) -> None:
        self.run = run
        self.runner = runner
        self.truth = truth
        self.warm = warm
        self._thread = thread

    def expect(self, begun: Mapping[str, Begun]) -> None:
        """These are gone on with first: they may be in sandboxes that others want."""
        self.warm.expect({step: each.where.id for step, each in begun.items() if each.where is not None})

    async def attempt_step(self, step: StepPlan, attempt: Attempt) -> Outcome:
        """Make an attempt at a step, and tell ZenML what it doesn't know of its end.

        Raises only what is a defect or an outage beyond patience.
        """
        about: dict[str, str | int] = {
            names.SPAN_STEP: step.name,
            names.SPAN_ATTEMPT: attempt.number,
            names.SPAN_RUN_ID: self.run.id,
            names.SPAN_TASK_RUN_ID: str(attempt.task_run_id),
        }
        with tracing.span(f"attempt {step.name}", about) as noted:
            outcome = await _StepAttempt(self, step, attempt).run()
            if outcome.verdict is not Verdict.SUCCEEDED:
                noted.failed(str(outcome.diagnosis or outcome.verdict.value))
            return outcome

    def finish(self, step: str, *, done: bool) -> None:
        """No more attempts at this step: what is kept for it may go. Idempotent. ``done``: those below it may run."""
        self.warm.finish(step, done=done)

    def begin_no_more(self) -> None:
        """No step begins any more: what is kept for such may go."""
        self.warm.begin_no_more()

    async def report(self, step: StepPlan, outcome: Outcome) -> None:
        """Tell ZenML of the end of an attempt what it can't know by itself."""
        run = self.run
        if outcome.verdict is Verdict.STOPPED:
            if outcome.record.step_run_id and outcome.needs_step_run:
                step_run_id = UUID(outcome.record.step_run_id)
                await self._thread.call(lambda: step_runs.record_stopped(step_run_id))
        elif outcome.needs_step_run and outcome.diagnosis is not None:
            diagnosis = outcome.diagnosis
            await self._thread.call(lambda: step_runs.record_failure(run.run, step.name, outcome.record, diagnosis))
        elif outcome.needs_explaining and outcome.diagnosis is not None and outcome.record.step_run_id is not None:
            step_run_id, because = UUID(outcome.record.step_run_id), outcome.diagnosis
            await self._thread.call(lambda: step_runs.explain_failure(step_run_id, because))

    async def close_retries(self, step: str) -> None:
        """Tell ZenML that a step which it waits for won't be tried again."""
        run = self.run
        await self._thread.call(lambda: step_runs.close_retries(run.run, step))

    async def stop_retrying(self, step: str) -> None:
        """Tell ZenML the same of a step that was stopped."""
        run = self.run
        await self._thread.call(lambda: step_runs.stop_retrying(run.run, step))

    async def give_up(self, step: str, outcome: Outcome) -> Outcome:
        """Close the retries after a failed attempt and return what became of it: stopped in a run that stops."""
        await self.close_retries(step)
        now = await self.truth.read(step)
        return stopped_after(outcome, now) if now.reported is Reported.STOPPED else outcome

    async def attempt_pipeline(self, attempt: Attempt) -> SandboxEnd | Outcome:
        """Make an attempt at the whole pipeline in one sandbox.

        Raises ``NotAsked`` where nobody knows whether there is one.
        """
        begun = attempt.begun
        if begun is not None and begun.where is None:
            return _FORGOTTEN
        plan = self.run.plan
        command = self.runner.host_command(*plan.command, "--run-id", self.run.id)
        with _sandbox_span() as noted:
            request = self.run.pipeline_request(command, attempt.task_run_id, attempt.number)
            left = begun.where if begun is not None else None
            start = self.runner.start(_traced(request)) if left is None else itself(left)
            place = _Place(plan.pipeline, request.name, plan.sandbox.timeout, exists=left is not None)
            end = await _run_sandbox(place, start, attempt)
            _note_end(noted, end)
        await attempt.output.delivered()
        return end


class _StepAttempt:
    """One attempt at a step: sandbox after sandbox, until one isn't lost. To be run once."""

    def __init__(self, owner: Attempts, step: StepPlan, attempt: Attempt) -> None:
        self._owner = owner
        self._step = step
        self._attempt = attempt
        self._before = StepRecord()
        """What ZenML said of the step before this attempt."""
        self._left = attempt.begun
        """What an earlier process left, until it is taken up."""
        first, step_run_id = 1, attempt.step_run_id
        if attempt.begun is not None:
            first, record = attempt.begun.sandbox, attempt.begun.record
            step_run_id = record.step_run_id if record.reported is Reported.RUNNING else None
        self._again = Again(
            step.infrastructure_retries, step_run_id, attempt.kill, attempt.logger, attempt.output.lost, first
        )

    async def run(self) -> Outcome:
        """Make it, and tell ZenML what it doesn't know of its end."""
        self._before = await self._record_before()
        outcome = await self._again.until_it_is_not_lost(self._once)
        await self._owner.report(self._step, outcome)
        return await self._unless_stopped(outcome)

    async def _record_before(self) -> StepRecord:
        number = self._attempt.number
        if self._attempt.begun is not None:
            return StepRecord(version=number - 1)
        return await self._owner.truth.read(self._step.name) if number > 1 else StepRecord()

    async def _once(self) -> Outcome:
        """What came of the step in one sandbox."""
        step, attempt, truth = self._step, self._attempt, self._owner.truth
        continued = self._again.step_run_id
        try:
            end = await self._in_sandbox(continued)
        except NotAsked as error:
            self._again.same_sandbox()
            end = SandboxEnd(End.NEVER_STARTED, detail=str(error))
        if isinstance(end, Outcome):
            # A step run that waits for this sandbox is the one that failed.
            return end if continued is None else replace(end, record=await truth.read(step.name))
        if end.end is End.EXITED and end.exit_code == 0:
            attempt.over()
        known = answered(end, self._before)
        asked = truth.read(step.name) if known is None else truth.in_order(known)
        record, _ = await asyncio.gather(asked, attempt.output.delivered())
        if record.version <= self._before.version:
            record = StepRecord()  # an earlier attempt's: this one never reached ZenML
        last_output = attempt.output.last_words
        return judge(end, record, stop_requested=attempt.kill.is_set(), last_output=last_output, reports=step.reports)

    async def _in_sandbox(self, step_run_id: str | None) -> SandboxEnd | Outcome:
        """Be in the sandbox that an earlier process left, or in the next one, to its end."""
        left, self._left = self._left, None
        if left is not None and left.where is None:
            return _FORGOTTEN
        step, attempt, owner = self._step, self._attempt, self._owner
        command = owner.runner.host_command(*step.command, *(("--step-run-id", step_run_id) if step_run_id else ()))
        with _sandbox_span() as noted:
            request = owner.run.step_request(step, command, attempt.task_run_id, attempt.number, self._again.sandbox)
            end = await self._turn(_traced(request), step_run_id, left.where if left is not None else None)
            _note_end(noted, end)
        return end

    async def _turn(
        self, request: SandboxRequest, step_run_id: str | None, left: Sandbox | None
    ) -> SandboxEnd | Outcome:
        step, warm = self._step, self._owner.warm
        try:
            start = warm.start(step, step_run_id, request, left)
            place = _Place(step.name, request.name, step.sandbox.timeout, exists=left is not None)
            return await _run_sandbox(place, start, self._attempt)
        finally:
            warm.leave(step.name)

    async def _unless_stopped(self, outcome: Outcome) -> Outcome:
        """Of a failure that ZenML was told here it may have taken nothing: the run was just being stopped.

        A step that began as another failed is refused its step run: it didn't fail, it came too late.
        """
        if outcome.verdict is not Verdict.FAILED or not outcome.needs_step_run:
            return outcome
        now = await self._owner.truth.read(self._step.name)
        if now.version > self._before.version:
            return stopped_after(outcome, now) if now.reported is Reported.STOPPED else replace(outcome, record=now)
        if outcome.cost is not Cost.OWN_RETRY or outcome.record.reported is not Reported.NOTHING:
            return outcome
        diagnosis = Diagnosis(
            "The step didn't begin", "ZenML takes no new step of this run, which has failed or is stopping"
        )
        return Outcome(Verdict.STOPPED, Cost.NOTHING, outcome.record, diagnosis)


async def _run_sandbox(place: _Place, start: Coroutine[Any, Any, Sandbox], attempt: Attempt) -> SandboxEnd | Outcome:
    """Make a sandbox and stay with it to its end; an ``Outcome`` where it was never to be had.

    Raises ``NotAsked`` where nobody knows whether there is one.
    """
    log, logger = attempt.output, attempt.logger
    try:
        # One that exists is seen to its end in any case: a kill ends it.
        sandbox = await start if place.exists else await _unless_killed(start, attempt.kill)
    except SandboxRefused as error:
        return refused(str(error))
    except CapacityUnavailable as error:
        return SandboxEnd(End.NEVER_STARTED, detail=str(error))
    except RunnerUnavailable as error:
        raise NotAsked(f"the runner couldn't be asked: {error}") from error
    if sandbox is None:
        return SandboxEnd(End.TERMINATED, detail="stopped before it started")
    output = asyncio.ensure_future(_pump(sandbox, log, logger, place.who))
    try:
        logger.info("Sandbox %s%s", sandbox.id, f": {sandbox.url}" if sandbox.url else "")
        tracing.note({names.SPAN_SANDBOX_ID: sandbox.id})
        log.comes_from(place.key, sandbox.id, sandbox.url)
        end = await _stay(sandbox, place.timeout, attempt.kill)
        await output
        return end
    except asyncio.CancelledError:
        await asyncio.shield(sandbox.terminate())
        await output
        raise
    except Exception:
        # Nobody stays with it any more.
        await _end_unattended(sandbox, logger)
        raise
    finally:
        # Else it would go on where nobody could be asked about the end, which it waits for.
        output.cancel()
        await asyncio.wait({output})
        log.close()


async def _end_unattended(sandbox: Sandbox, logger: Logger) -> None:
    try:
        await sandbox.terminate()
    except Exception as error:
        logger.warning("Sandbox %s may run on: it can't be ended: %s: %s", sandbox.id, type(error).__name__, error)


async def _stay(sandbox: Sandbox, timeout: int, kill: asyncio.Event) -> SandboxEnd:
    ended = asyncio.ensure_future(while_it_may_live(sandbox.wait, timeout))
    killed = asyncio.ensure_future(kill.wait())
    try:
        await asyncio.wait({ended, killed}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await terminate(sandbox, ended)
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
    except asyncio.CancelledError:
        if started.done() and not started.cancelled() and started.exception() is None:
            # It came in the very moment in which nobody wants it any more.
            await asyncio.shield(started.result().terminate())
        raise
    finally:
        killed.cancel()
        if not started.done():
            started.cancel()  # which leaves no sandbox behind
            await asyncio.wait({started})
    return None if started.cancelled() else started.result()


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
