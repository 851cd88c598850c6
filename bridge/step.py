"""One attempt at a step, or at a whole pipeline: sandbox, output, end, verdict, report.

Knows no Prefect but its log. A sandbox that is lost is replaced here, within the attempt; whether the step is
tried again after a failure is decided by the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from bridge import step_runs
from bridge.errors import CapacityUnavailable, RunnerUnavailable, SandboxRefused
from bridge.logs import Logger, StepLog
from bridge.outcome import Cost, Diagnosis, End, Outcome, Reported, SandboxEnd, StepRecord, Verdict, judge, refused
from bridge.plan import StepPlan
from bridge.run import Run
from bridge.runners.base import Runner, Sandbox, SandboxRequest
from bridge.terminal import echo
from bridge.truth import Truth, ZenMLThread
from bridge.warm import WarmSteps

_asking = wait_exponential_jitter(initial=1, max=30)


class Attempts:
    """Makes attempts for one run. One instance a flow run; used from its event loop only."""

    def __init__(self, run: Run, runner: Runner, thread: ZenMLThread, truth: Truth, warm: WarmSteps) -> None:
        self._run = run
        self._runner = runner
        self._thread = thread
        self._truth = truth
        self._warm = warm

    async def attempt_step(
        self,
        step: StepPlan,
        number: int,
        task_run_id: UUID,
        kill: asyncio.Event,
        log: StepLog,
        logger: Logger,
    ) -> Outcome:
        """Make attempt ``number`` (from 1) at a step, and tell ZenML what it doesn't know of its end.

        ``kill`` ends it early. Raises only what is a defect or an outage beyond patience.
        """
        before = await self._truth.read(step.name) if number > 1 else StepRecord()
        continued: str | None = None
        for sandbox in range(1, step.infrastructure_retries + 2):
            arguments = (*step.command, *(("--step-run-id", continued) if continued else ()))
            request = self._run.step_request(step, self._runner.host_command(*arguments), task_run_id, number, sandbox)
            end = await self._turn(step, continued, request, kill, log, logger)
            if isinstance(end, Outcome):
                outcome = end
                break
            record = await self._truth.read(step.name)
            if record.version <= before.version:
                record = StepRecord()  # an earlier attempt's: this one never reached ZenML
            outcome = judge(end, record, stop_requested=kill.is_set(), last_output=log.last_line)
            if outcome.verdict is not Verdict.LOST:
                break
            continued = record.step_run_id
            logger.warning("%s (sandbox %d of %d)", outcome.diagnosis, sandbox, step.infrastructure_retries + 1)
            if sandbox <= step.infrastructure_retries:
                await _wait(kill, _delay(sandbox))
        outcome = _exhausted(outcome, step.infrastructure_retries)
        await self._report(step, outcome)
        return await self._unless_too_late(step, outcome, before)

    async def _unless_too_late(self, step: StepPlan, outcome: Outcome, before: StepRecord) -> Outcome:
        """A step that began just as another failed is refused its step run: it didn't fail, it came too late."""
        if outcome.verdict is not Verdict.FAILED or outcome.cost is not Cost.OWN_RETRY:
            return outcome
        if outcome.record.reported is not Reported.NOTHING:
            return outcome
        now = await self._truth.read(step.name)
        if now.version > before.version:
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
        kill: asyncio.Event,
        log: StepLog,
        logger: Logger,
    ) -> SandboxEnd | Outcome:
        try:
            start = self._warm.start(step, step_run_id, request)
            return await self._sandbox(step.name, start, step.sandbox.timeout, kill, log, logger)
        finally:
            self._warm.leave(step.name)

    def finish(self, step: str) -> None:
        """No more attempts at this step: what is kept for it may go. Idempotent."""
        self._warm.finish(step)

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

    async def close_retries(self, step: str) -> None:
        """Tell ZenML that a step which it waits for won't be tried again."""
        run = self._run
        await self._thread.call(lambda: step_runs.close_retries(run.snapshot, run.run, run.stack, step))

    async def attempt_pipeline(
        self, number: int, task_run_id: UUID, kill: asyncio.Event, log: StepLog, logger: Logger
    ) -> SandboxEnd | Outcome:
        """Make attempt ``number`` (from 1) at the whole pipeline in one sandbox."""
        plan = self._run.plan
        command = self._runner.host_command(*plan.command, "--run-id", self._run.id)
        request = self._run.pipeline_request(command, task_run_id, number)
        start = self._runner.start(request)
        return await self._sandbox(plan.pipeline, start, plan.sandbox.timeout, kill, log, logger)

    async def _sandbox(
        self,
        who: str,
        start: Coroutine[Any, Any, Sandbox],
        timeout: int,
        kill: asyncio.Event,
        log: StepLog,
        logger: Logger,
    ) -> SandboxEnd | Outcome:
        """Make a sandbox and stay with it to its end; an ``Outcome`` where it was never to be had."""
        try:
            sandbox = await _unless_killed(start, kill)
        except SandboxRefused as error:
            return refused(str(error))
        except CapacityUnavailable as error:
            return SandboxEnd(End.NEVER_STARTED, detail=str(error))
        except RunnerUnavailable as error:
            return SandboxEnd(End.NEVER_STARTED, detail=f"the runner couldn't be asked: {error}")
        if sandbox is None:
            return SandboxEnd(End.TERMINATED, detail="stopped before it started")
        logger.info("Sandbox %s%s", sandbox.id, f": {sandbox.url}" if sandbox.url else "")
        log.comes_from(sandbox.id, sandbox.url)
        output = asyncio.ensure_future(_pump(sandbox, log, logger, who))
        try:
            return await self._stay(sandbox, timeout, kill)
        except asyncio.CancelledError:
            await asyncio.shield(sandbox.terminate())
            raise
        finally:
            await output
            log.close()

    async def _stay(self, sandbox: Sandbox, timeout: int, kill: asyncio.Event) -> SandboxEnd:
        ended = asyncio.ensure_future(_wait_for_end(sandbox, timeout))
        killed = asyncio.ensure_future(kill.wait())
        try:
            await asyncio.wait({ended, killed}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await sandbox.terminate()
            return await ended
        finally:
            ended.cancel()
            killed.cancel()


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


async def _wait_for_end(sandbox: Sandbox, timeout: int) -> SandboxEnd:
    """Wait for the end, asking again as long as the sandbox could still be alive."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(RunnerUnavailable),
        wait=_asking,
        stop=stop_after_delay(timeout + 600),
        reraise=True,
    ):
        with attempt:
            return await sandbox.wait()
    raise AssertionError("unreachable: tenacity returns or raises")


async def _pump(sandbox: Sandbox, log: StepLog, logger: Logger, who: str) -> None:
    try:
        async for line in sandbox.output():
            log.write(line)
            echo(who, line.text)
    except RunnerUnavailable as error:
        logger.warning("The rest of this sandbox's output can't be read: %s", error)


def _delay(sandbox: int) -> float:
    return min(60.0, 2.0 ** (sandbox - 1))


async def _wait(kill: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(kill.wait(), seconds)
    except asyncio.TimeoutError:
        return


def _exhausted(outcome: Outcome, retries: int) -> Outcome:
    if outcome.verdict is not Verdict.LOST or outcome.diagnosis is None:
        return outcome
    lost = outcome.diagnosis
    diagnosis = Diagnosis(
        f"{lost.what}, in {retries + 1} sandboxes one after the other",
        lost.detail,
        "Modal's status page may tell; `infrastructure_retries` sets how many are tried",
    )
    return Outcome(Verdict.FAILED, Cost.EVERYTHING, outcome.record, diagnosis)
