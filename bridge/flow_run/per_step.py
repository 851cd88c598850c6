"""``per_step`` mode: each step is a Prefect task that runs in a sandbox of its own.

Who does what: :mod:`bridge.flow_run.ready` says when a step starts, Prefect's task engine retries it and keeps its
state, :mod:`bridge.flow_run.step` makes the attempt. The task run's inputs are its upstream task runs, so Prefect's UI
draws the pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from bridge import names
from bridge.errors import InvalidSettings
from bridge.flow_run.flow_parts import FlowParts
from bridge.flow_run.limits import LimitMissing, Limits
from bridge.flow_run.outcome import SUCCESSFUL, Cost, Diagnosis, Outcome, Reported, StepRecord, Verdict, refused
from bridge.flow_run.ready import Fate, Gate, GraphRun, NotRun, Pass, Slots
from bridge.flow_run.resume import Earlier
from bridge.flow_run.step import Attempt, Begun
from bridge.flow_run.step_task import EngineTask
from bridge.plan import FailureMode, StepPlan
from bridge.watching.logs import Logger
from bridge.zenml_side.cache_lookup import CacheLookup
from bridge.zenml_side.step_runs import record_failure, stop_running

SETTLING_SECONDS = 10.0
"""How long new steps wait for the sandboxes of steps that ended while no process worked on the flow run."""


class PerStep:
    """Runs the steps of one run, each as a task run of the current flow run."""

    def __init__(self, parts: FlowParts, *, earlier: Earlier, parallelism: int | None) -> None:
        run = self.run = parts.run
        self.board = parts.board
        self.attempts = parts.attempts
        self.shipper = parts.shipper
        self.earlier = earlier
        self._thread = parts.thread
        self._cache = CacheLookup(run.snapshot, run.run, run.stack)
        self.task_runs = {step.name: names.task_run_id(run.flow_run_id, step.name) for step in run.plan.steps}
        self.limits = Limits()
        self.failures: dict[str, str] = {}
        """The failed steps, in the order in which they failed, with their diagnoses."""
        self.graph = GraphRun(
            run.plan.upstream,
            execute=self._execute,
            not_run=self._not_run,
            admission=Slots(parallelism),
            failure_mode=run.plan.failure_mode,
            finished=earlier.successful,
            begun=earlier.begun,
            closed=self.attempts.begin_no_more,
        )
        self._kill_settling = asyncio.Event()

    async def run_all(self) -> None:
        """Run every step to its end. Raises what is a defect or an outage beyond patience."""
        self.attempts.expect(self.earlier.begun)
        for step in self.earlier.done:
            self.attempts.finish(step, done=True)
            self.board.ended(step, "Completed", "")
        late = self.earlier.successful - self.earlier.done
        settling = {step: asyncio.ensure_future(self._settle(step)) for step in self.run.plan.upstream if step in late}
        sharing = {settling[step] for step in settling if self._shares_a_sandbox(step)}
        if sharing:
            # The next steps enter the sandboxes that these leave, which takes a moment; else they would have new ones.
            await asyncio.wait(sharing, timeout=SETTLING_SECONDS)
        await to_their_end([self.graph.run(), *settling.values()], lambda: self.kill("an error of the bridge itself"))

    def _shares_a_sandbox(self, step: str) -> bool:
        begun = self.earlier.begun.get(step)
        return begun is not None and begun.where is not None and names.is_host_name(begun.where.name)

    def kill(self, reason: str) -> None:
        """End everything that runs."""
        self._kill_settling.set()
        self.graph.kill(reason)

    async def _settle(self, step: str) -> None:
        """Let Prefect know of a step that has succeeded already, and read what is left of its output.

        It takes nobody's place: at most its sandbox is about to end.
        """
        permit = Pass(Gate(Slots(None)), step, 0, self._kill_settling)
        try:
            await _StepTask(self, self.run.plan.step(step), permit).run()
        finally:
            self.attempts.finish(step, done=True)

    async def answer_from_cache(self, step: StepPlan) -> Reported | None:
        """Ask ZenML's cache, once a step."""
        if not step.caching and not self.run.run.original_run:
            return None
        return await self._thread.call(lambda: self._cache.answer(step.name))

    async def refuse(self, step: StepPlan, error: InvalidSettings) -> Outcome:
        """Fail a step that was never to have a sandbox, for good."""
        outcome = refused(str(error))
        diagnosis = outcome.diagnosis or Diagnosis(str(error))
        run = self.run
        await self._thread.call(lambda: record_failure(run.run, step.name, outcome.record, diagnosis))
        return outcome

    async def _execute(self, name: str, permit: Pass) -> Fate:
        mode = self.run.plan.failure_mode
        fate: Fate | None = None
        try:
            fate = await _StepTask(self, self.run.plan.step(name), permit).run()
        finally:
            if fate is Fate.FAILED and mode is not FailureMode.CONTINUE_ON_FAILURE:
                self.attempts.begin_no_more()  # first: else what this step leaves is taken for the next ones'
            self.attempts.finish(name, done=fate is Fate.DONE)
        if fate is Fate.FAILED and mode is FailureMode.FAIL_FAST:
            # The others are killed next: ZenML hears of it before their processes could call that a failure.
            await self._thread.call(lambda: stop_running(self.run.run))
        return fate

    async def _not_run(self, missing: NotRun) -> None:
        """Give a step that never starts a task run that says so; else the UI draws it as pending for ever."""

        async def not_run(number: int) -> State[None]:
            return Cancelled(name=names.STATE_NOT_RUN, message=f"Did not run: {missing.reason}.")

        step = self.run.plan.step(missing.step)
        self.attempts.finish(step.name, done=False)
        self.board.ended(step.name, names.STATE_NOT_RUN, missing.reason)
        await EngineTask(step.name, not_run).run(self.task_runs[step.name], self.inputs_of(step))

    def inputs_of(self, step: StepPlan) -> list[UUID]:
        """The task runs of a step's upstream steps."""
        return [self.task_runs[name] for name in step.upstream]


async def to_their_end(works: Iterable[Awaitable[object]], kill: Callable[[], None]) -> None:
    """Wait for all of these. Where one raises, the others are killed and waited for before that is raised: nothing may
    start a sandbox when whoever ends them has gone.
    """
    futures = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*futures)
    except Exception:
        kill()
        await asyncio.wait(futures)
        raise


class _StepTask:
    """One step as one Prefect task run, from its first attempt to its last."""

    def __init__(self, owner: PerStep, step: StepPlan, permit: Pass) -> None:
        self._owner = owner
        self._step = step
        self._permit = permit
        self._outcome: Outcome | None = None
        self._tries_again = False
        self._begun = owner.earlier.begun.get(step.name)

    async def run(self) -> Fate:
        # What an earlier process of this flow run tried counts.
        before = self._begun.number - 1 if self._begun is not None else 0
        owner, step, delays = self._owner, self._step, self._step.retry.delays[before:]
        task = EngineTask(
            step.name, self._attempt, retries=len(delays), delays=delays, may_retry=lambda: self._tries_again
        )
        task_run_id, inputs = owner.task_runs[step.name], owner.inputs_of(step)
        state = await task.run_unless_killed(task_run_id, inputs, before, self._permit.kill)
        if state is None:
            return await self._give_up_waiting(task)
        return await self._conclude(state, task.attempts)

    async def _attempt(self, number: int) -> State[None]:
        self._tries_again = False
        outcome: Outcome | None = None
        try:
            if not await self._permit.take_again():
                return Cancelled(message="Stopped while it waited for its retry.")
            self._owner.board.attempt(self._step.name, number, begun=self._begun is not None)
            outcome = self._outcome = await self._outcome_of(number)
            self._tries_again = self._may_try_again(outcome, number)
            if outcome.verdict is Verdict.FAILED and not self._tries_again:
                outcome = await self._owner.attempts.give_up(self._step.name, outcome)
            self._outcome = outcome
        finally:
            self._owner.board.attempt_over(self._step.name, _failure(outcome))
            self._permit.give_back()
        return _state(outcome)

    async def _outcome_of(self, number: int) -> Outcome:
        owner, step = self._owner, self._step
        begun, self._begun = self._begun, None
        known = owner.earlier.records.get(step.name, StepRecord())
        if known.reported in SUCCESSFUL and begun is None:
            return Outcome(Verdict.SUCCEEDED, Cost.NOTHING, known)
        if number == 1 and begun is None:
            answer = await owner.answer_from_cache(step)
            if answer is not None:
                return Outcome(Verdict.SUCCEEDED, Cost.NOTHING, StepRecord(answer))
        task_run_id, logger = owner.task_runs[step.name], get_run_logger()
        if begun is not None and begun.where is not None:
            async with owner.limits.slot_meanwhile(step.concurrency_limit, self._permit, task_run_id, logger):
                return await self._attempt_step(number, logger, begun)
        goes_on = begun is not None
        try:
            async with owner.limits.slot(
                step.concurrency_limit, self._permit, task_run_id, logger, goes_on=goes_on
            ) as held:
                # One that had begun has a step run, which is told of its end as always.
                if not held and not goes_on:
                    stopped = Diagnosis("The step was stopped before it had a slot of its concurrency limit")
                    before = self._outcome.record if self._outcome is not None else StepRecord()
                    return Outcome(Verdict.STOPPED, Cost.NOTHING, before, stopped)
                return await self._attempt_step(number, logger, begun)
        except LimitMissing as error:
            return await owner.refuse(step, error)

    async def _attempt_step(self, number: int, logger: Logger, begun: Begun | None) -> Outcome:
        owner, step = self._owner, self._step
        task_run_id = owner.task_runs[step.name]
        log = owner.shipper.open(
            task_run_id,
            send=step.stream_logs,
            on_sandbox=partial(owner.board.in_sandbox, step.name),
            on_lost=partial(owner.board.lost, step.name),
        )
        permit = self._permit
        attempt = Attempt(number, task_run_id, permit.kill, log, logger, begun=begun, over=permit.ends)
        return await owner.attempts.attempt_step(step, attempt)

    def _may_try_again(self, outcome: Outcome, number: int) -> bool:
        # Decided once: a stop between two answers would leave the two sides with different ends. ZenML has heard of the
        # failure by now, and doesn't wait for another attempt where the run was being stopped, which this may not know.
        return (
            outcome.cost is Cost.OWN_RETRY
            and outcome.record.reported is Reported.RETRYING
            and number <= self._step.retry.retries
            and not self._permit.last_attempt
            and not self._permit.kill.is_set()
        )

    async def _give_up_waiting(self, task: EngineTask) -> Fate:
        """Say everywhere that the step was stopped while it waited for its retry."""
        task.report(Cancelled(message="Stopped while it waited for its retry."))
        await self._owner.attempts.stop_retrying(self._step.name)
        self._owner.board.ended(self._step.name, "Cancelled", "stopped while it waited for its retry")
        return Fate.STOPPED

    async def _conclude(self, state: State[None], attempts: int) -> Fate:
        self._owner.board.ended(self._step.name, state.name or state.type.value, state.message or "")
        if state.is_completed():
            return Fate.DONE
        if state.is_cancelled():
            # Whatever was known of the attempt before: one that never came to a step run of its own leaves it RETRYING.
            if attempts > 1 or (self._outcome is not None and self._outcome.record.reported is Reported.RETRYING):
                await self._owner.attempts.stop_retrying(self._step.name)
            return Fate.STOPPED
        if attempts <= self._step.retry.retries:
            await self._owner.attempts.close_retries(self._step.name)
        self._owner.failures[self._step.name] = state.message or "no diagnosis"
        return Fate.FAILED


def _failure(outcome: Outcome | None) -> str | None:
    """Why an attempt failed; None where it didn't."""
    if outcome is None or outcome.verdict is not Verdict.FAILED:
        return None
    return str(outcome.diagnosis or "")


def _state(outcome: Outcome) -> State[None]:
    message = str(outcome.diagnosis) if outcome.diagnosis else None
    if outcome.verdict is Verdict.SUCCEEDED:
        if outcome.record.reported is Reported.CACHED:
            # One that was found by the step's own process, in a sandbox, has the step run that it began.
            where = "" if outcome.record.step_run_id else "; no sandbox was started"
            return Completed(name=names.STATE_CACHED, message=f"Taken from ZenML's cache{where}.")
        if outcome.record.reported is Reported.SKIPPED:
            return Completed(name=names.STATE_SKIPPED, message="Skipped: the replayed run has its outputs.")
        return Completed()
    if outcome.verdict is Verdict.STOPPED:
        return Cancelled(message=message)
    return Failed(message=message)
