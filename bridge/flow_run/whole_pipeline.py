"""``pipeline`` mode: one Prefect task runs the whole pipeline in one sandbox.

The program in the sandbox (:mod:`bridge.host`) schedules, retries and records the steps. What is left here is
the sandbox: a lost one is a new attempt of the task, which takes finished steps as done; one that died with
steps in it costs each of those steps one of its own retries; one that died while steps waited for their retry costs
nobody one.
"""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from zenml.enums import ExecutionStatus

from bridge import names
from bridge.flow_run.again import NotAsked, differing
from bridge.flow_run.flow_parts import FlowParts
from bridge.flow_run.limits import LimitMissing, Limits
from bridge.flow_run.outcome import (
    SUCCESSFUL,
    Cost,
    Diagnosis,
    End,
    Outcome,
    Reported,
    SandboxEnd,
    StepRecord,
    diagnose,
    judge,
    refused,
)
from bridge.flow_run.resume import Earlier
from bridge.flow_run.step import Attempt, Begun
from bridge.flow_run.step_task import EngineTask
from bridge.plan import FailureMode
from bridge.watching.logs import Logger
from bridge.zenml_side import step_runs
from bridge.zenml_side.run_status import status_of

_OPEN = frozenset({Reported.RUNNING, Reported.RETRYING})


class WholePipeline:
    """Runs one run in one sandbox, as the one task run of the current flow run."""

    def __init__(self, parts: FlowParts, earlier: Earlier) -> None:
        self.run = parts.run
        self._board = parts.board
        self.kill = asyncio.Event()
        self.last_attempt = False
        """True once the run is being stopped: then a lost sandbox isn't followed by another."""
        self.stopped = False
        self.failures: dict[str, str] = {}
        self.task_run_id = names.task_run_id(self.run.flow_run_id, None)
        self._attempts = parts.attempts
        self._shipper = parts.shipper
        self._thread = parts.thread
        self._limits = Limits()
        self._earlier = earlier
        self._begun = earlier.pipeline
        self._lost = self._begun.lost if self._begun is not None else 0
        self._not_asked = 0
        self._again = False
        self._seen: dict[str, StepRecord] = {}
        """What ZenML said of the steps after the sandbox before."""

    def drain(self, reason: str) -> None:
        """Start no other sandbox. The host in this one sees by itself that its run is stopped."""
        get_run_logger().info("The pipeline drains: %s.", reason)
        self.last_attempt = True

    def end(self, reason: str) -> None:
        """End the sandbox."""
        get_run_logger().info("The pipeline ends: %s.", reason)
        self.kill.set()

    async def execute(self) -> State[None]:
        """Run the pipeline to its end and return the state of its task run. Raises a defect, or what can't be asked."""
        plan = self.run.plan
        # Prefect counts both kinds of retries together; `_again` keeps each kind to its own number. What an earlier
        # process of this flow run tried counts.
        before = self._begun.number - 1 if self._begun is not None else 0
        retries = max(0, plan.most_sandboxes - 1 - before)
        delays = differing(min(50, retries))
        task = EngineTask(
            plan.pipeline,
            self._outcome_of,
            retries=retries,
            delays=delays,
            may_retry=lambda: self._again and not self._is_to_end,
        )
        state = await task.run_unless_killed(self.task_run_id, (), before, self.kill)
        task.raise_defect()
        if state is None or (self._again and self._is_to_end):
            return await self._give_up(task)
        return state

    @property
    def _is_to_end(self) -> bool:
        return self.kill.is_set() or self.last_attempt

    async def _give_up(self, task: EngineTask) -> State[None]:
        """End a task run that was to have another sandbox when the run was stopped."""
        state: State[None] = Cancelled(message="The pipeline was stopped while it waited for another sandbox.")
        task.report(state)
        await self._stop(await self._records())
        return state

    async def _outcome_of(self, number: int) -> State[None]:
        self._again = False
        if self._begun is None and self._earlier.successful.issuperset(self.run.plan.upstream):
            return Completed()
        end = await self._sandbox(number)
        if isinstance(end, Outcome):
            return await self._refused(end)
        records = await self._records()
        if all(record.reported in SUCCESSFUL for record in records.values()):
            return Completed()
        if self.kill.is_set() or (self.last_attempt and any(record.reported in _OPEN for record in records.values())):
            await self._stop(records)
            return Cancelled(message="The pipeline was stopped.")
        return await self._judge(end, records)

    async def _sandbox(self, number: int) -> SandboxEnd | Outcome:
        """Run the sandbox of attempt ``number`` to its end; it holds one slot of the concurrency limit."""
        limit, logger = self.run.plan.concurrency_limit, get_run_logger()
        begun, self._begun = self._begun, None
        try:
            if begun is not None and begun.where is not None:
                async with self._limits.slot_meanwhile(limit, self, self.task_run_id, logger):
                    return await self._in_sandbox(number, logger, begun)
            async with self._limits.slot(limit, self, self.task_run_id, logger) as held:
                if not held:
                    self.kill.set()
                    return SandboxEnd(End.TERMINATED, detail="stopped before it had a slot of its concurrency limit")
                # One that nobody could ask for may exist: it is asked for again, lest the pipeline run twice.
                return await self._in_sandbox(number - self._not_asked, logger, begun)
        except NotAsked as error:
            self._not_asked += 1
            return SandboxEnd(End.NEVER_STARTED, detail=str(error))
        except LimitMissing as error:
            return refused(str(error))

    async def _in_sandbox(self, number: int, logger: Logger, begun: Begun | None) -> SandboxEnd | Outcome:
        in_sandbox = self._board.all_in_sandbox
        log = self._shipper.open(self.task_run_id, send=self.run.plan.stream_logs, on_sandbox=in_sandbox)
        attempt = Attempt(number, self.task_run_id, self.kill, log, logger, begun=begun)
        return await self._attempts.attempt_pipeline(attempt)

    async def _judge(self, end: SandboxEnd, records: dict[str, StepRecord]) -> State[None]:
        diagnosis = diagnose(end, of="pipeline")
        if end.is_infrastructure:
            self._lost += 1
            self._say_lost(diagnosis)
            if self._lost <= self.run.plan.infrastructure_retries:
                self._again = True
                return Failed(message=str(diagnosis))
            await self._blame(diagnosis)  # the steps fail for it
            await self._settle(records, end)
            return await self._failed(end, await self._close_retries())
        if end.end is End.TIMED_OUT:
            await self._blame(diagnosis)  # what its steps say is that they were interrupted
        orphans = await self._settle(records, end)
        records = await self._records()
        in_vain = end.end is End.TIMED_OUT or judge(end, StepRecord()).cost is Cost.EVERYTHING
        # It died under its steps, or between their attempts: those that have retries left go on in another one.
        waiting = [step for step, record in records.items() if record.reported is Reported.RETRYING]
        held = orphans or (waiting if end.was_killed else [])
        nothing_happened = not orphans and records == self._seen
        self._seen = records
        if held and nothing_happened:
            await self._blame(diagnosis)  # of the steps there is only to be said that they aren't tried again
        elif held and not in_vain and self._can_go_on(held, records):
            self._again = True
            return Failed(message=str(diagnose(end, records[held[0]], of="pipeline")))
        return await self._failed(end, await self._close_retries())

    def _can_go_on(self, held: list[str], records: dict[str, StepRecord]) -> bool:
        """Whether there is something to do for another sandbox, after this one died under its steps."""
        if all(records[step].reported is Reported.RETRYING for step in held):
            return True
        if self.run.plan.failure_mode is not FailureMode.CONTINUE_ON_FAILURE:
            return False
        return any(
            records[step].reported in (Reported.NOTHING, Reported.RETRYING)
            and all(records[name].reported in SUCCESSFUL for name in upstream)
            for step, upstream in self.run.plan.upstream.items()
        )

    async def _blame(self, diagnosis: Diagnosis) -> None:
        """Say of the run, before anything of its steps, what came to its sandbox; not of one that is being stopped."""
        if not await self._run_is_stopping():
            self.failures[""] = str(diagnosis)

    def _say_lost(self, diagnosis: Diagnosis) -> None:
        most = self.run.plan.infrastructure_retries + 1
        get_run_logger().warning("%s (sandbox %d of %d)", diagnosis, self._lost, most)
        self._board.all_lost(diagnosis.what)

    async def _settle(self, records: dict[str, StepRecord], why: SandboxEnd | Diagnosis) -> list[str]:
        """Tell ZenML of the failure of steps that died with their sandbox, and return their names."""
        orphans = [step for step, record in records.items() if record.reported is Reported.RUNNING]
        for step in orphans:
            record = records[step]
            diagnosis = why if isinstance(why, Diagnosis) else diagnose(why, record, of="pipeline")
            await self._thread.call(partial(step_runs.record_failure, self.run.run, step, record, diagnosis))
        return orphans

    async def _close_retries(self) -> dict[str, StepRecord]:
        """Tell ZenML that no step is tried again, and return what it says of all of them then."""
        for step, record in (await self._records()).items():
            if record.reported is Reported.RETRYING:
                await self._attempts.close_retries(step)
        return await self._records()

    async def _stop(self, records: dict[str, StepRecord]) -> None:
        """Tell ZenML that steps which ran, or wait for a retry, were stopped; note those that had failed."""
        self.stopped = True
        for step, record in records.items():
            if record.reported is Reported.RUNNING and record.step_run_id:
                step_run_id = UUID(record.step_run_id)
                await self._thread.call(lambda step_run_id=step_run_id: step_runs.record_stopped(step_run_id))  # type: ignore[misc]
            elif record.reported is Reported.RETRYING:
                await self._attempts.stop_retrying(step)
        self._note_failures(await self._records())

    def _note_failures(self, records: dict[str, StepRecord]) -> None:
        for step, record in records.items():
            if record.reported in (Reported.FAILED, Reported.RETRYING):
                self.failures[step] = str(judge(SandboxEnd(End.EXITED, 1), record).diagnosis)
                self._board.explain(step, self.failures[step])

    async def _failed(self, end: SandboxEnd, records: dict[str, StepRecord]) -> State[None]:
        self._note_failures(records)
        if not self.failures and (
            any(record.reported is Reported.STOPPED for record in records.values()) or await self._run_is_stopping()
        ):
            self.stopped = True
            return Cancelled(message="The pipeline was stopped.")
        if not self.failures:
            self.failures[self.run.plan.pipeline] = str(diagnose(end, of="pipeline"))
        return Failed(message=summary(self.failures))

    async def _run_is_stopping(self) -> bool:
        """Whether it was stopped between two steps: then no step run says so, and nobody here may have seen it yet."""
        status = await self._thread.call(lambda: status_of(self.run.run))
        return status in (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED)

    async def _refused(self, outcome: Outcome) -> State[None]:
        if outcome.diagnosis is not None:
            # An earlier sandbox may have left steps for this one.
            await self._settle(await self._records(), outcome.diagnosis)
            await self._close_retries()
        self.failures[self.run.plan.pipeline] = str(outcome.diagnosis)
        return Failed(message=str(outcome.diagnosis))

    async def _records(self) -> dict[str, StepRecord]:
        steps = [step.name for step in self.run.plan.steps]
        found = await self._thread.call(lambda: step_runs.latest(self.run.run, steps))
        return {step: found.get(step, StepRecord()) for step in steps}


def summary(failures: dict[str, str]) -> str:
    """One message for the failed steps of a run: the first one's diagnosis, and how many more there are.

    The name "" stands for the run itself.
    """
    step, diagnosis = next(iter(failures.items()))
    others = list(failures)[1:]
    more = f" Also failed: {', '.join(others[:10])}{' ...' if len(others) > 10 else ''}." if others else ""
    return f"Step {step}: {diagnosis}{more}" if step else f"{diagnosis}{more}"
