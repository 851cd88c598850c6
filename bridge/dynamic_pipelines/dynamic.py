"""A dynamic pipeline: one Prefect task for its orchestration, and one for each isolated step run.

The orchestration is the pipeline's own function, with ZenML's runner around it and the inline steps in it, in one
sandbox (:mod:`bridge.host.dynamic`). Where that sandbox is lost, another one goes on: ZenML's runner looks at the step
runs and calls the function again, whose finished steps answer at once. The isolated steps are this process's
(:mod:`bridge.dynamic_pipelines.isolated_steps`), so they go on meanwhile.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from bridge import names
from bridge.awaiting import set_within
from bridge.dynamic_pipelines.isolated import Layer
from bridge.dynamic_pipelines.isolated_steps import IsolatedSteps
from bridge.flow_run.again import NotAsked, differing
from bridge.flow_run.flow_parts import FlowParts
from bridge.flow_run.outcome import Diagnosis, End, Outcome, SandboxEnd, StepRecord, diagnose
from bridge.flow_run.resume import task_runs_of
from bridge.flow_run.said import read_said
from bridge.flow_run.step import Attempt, Begun
from bridge.flow_run.step_task import EngineTask
from bridge.host.dynamic import BROKEN, COMPLETED, FAILED
from bridge.zenml_side import step_runs

MOST_SANDBOXES = 1000
"""How many sandboxes of the orchestration are looked for after a crash: each pause and each loss makes one."""
_ITS_OWN = frozenset((COMPLETED, FAILED, BROKEN, *range(1, 129)))
"""Exit codes of an orchestration that came to an end of its own, and to which another one would come as well. By
FAILED, ZenML's own, it says that ZenML has the run ended: a second one would only fail after it."""


class DynamicPipeline:
    """Runs one run of a dynamic pipeline in the current flow run.

    ``goes_on`` says whether an earlier process of the flow run may have begun it.
    """

    def __init__(self, parts: FlowParts, layer: Layer, *, parallelism: int | None, goes_on: bool) -> None:
        self.run = parts.run
        self.failures: dict[str, str] = {}
        self.stopped = False
        self.paused = False
        self._runner = parts.runner
        self._attempts = parts.attempts
        self._shipper = parts.shipper
        self._thread = parts.thread
        self._client = parts.client
        self._board = parts.board
        self._left: tuple[int, Begun | None] = (1, None)
        """The sandbox of the orchestration that is there already, and its number; or the next one's."""
        self._kill = asyncio.Event()
        self._last_sandbox = False
        self._task_run_id = names.task_run_id(self.run.flow_run_id, None)
        self._isolated = IsolatedSteps(parts, layer, parallelism=parallelism, goes_on=goes_on)

    def drain(self, reason: str) -> None:
        """Start no other sandbox. What runs is interrupted by ZenML's heartbeats, or ended when the grace is over."""
        get_run_logger().info("The pipeline drains: %s.", reason)
        self._last_sandbox = True
        self._isolated.drain()

    def kill(self, reason: str) -> None:
        """End all sandboxes."""
        get_run_logger().info("The pipeline ends: %s.", reason)
        self._kill.set()
        self._isolated.kill()

    def task_runs(self) -> set[UUID]:
        """The task runs that this process has seen to their ends, once it is executed."""
        return {self._task_run_id, *self._isolated.task_runs()}

    async def execute(self) -> None:
        """Run it to its end. Raises a defect, or an outage beyond patience."""
        self._isolated.take_up()
        starting = asyncio.ensure_future(self._isolated.keep_starting())
        orchestrating = asyncio.ensure_future(self._orchestrate(*self._left))
        try:
            await asyncio.wait({starting, orchestrating}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            starting.cancel()
            if not orchestrating.done():
                self._kill.set()  # a defect of the other one
            await asyncio.wait({starting, orchestrating})
            # ZenML's runner has waited for them, where it could; nobody else would.
            self._isolated.kill()
            await self._isolated.until_ended()
        if not starting.cancelled():
            starting.result()
        orchestrating.result()
        await self._thread.call(self._end_what_is_left)

    async def _orchestrate(self, number: int, begun: Begun | None) -> State[None]:
        async def attempt(_: int) -> State[None]:
            return await self._outcome(number, begun)

        task = EngineTask(self.run.plan.pipeline, attempt)
        state = await task.run(self._task_run_id, attempts_before=number - 1)
        task.raise_defect()
        return state

    async def _outcome(self, number: int, begun: Begun | None) -> State[None]:
        """Run sandbox after sandbox until ZenML knows an end of the run."""
        pauses = differing(self.run.plan.infrastructure_retries)
        run = await self._thread.call(self._read)
        while begun is not None or not (run is None or run.status.is_finished):
            end = await self._sandbox(number, begun)
            if isinstance(end, Outcome):
                return self._failed(str(end.diagnosis))
            is_earlier, begun = begun is not None, None
            run = await self._thread.call(self._read)
            if self._kill.is_set() or run is None or _is_over(run.status):
                break
            if is_earlier and run.status is ExecutionStatus.RESUMING and not self._last_sandbox:
                number += 1  # the run has paused, or failed, with it; and has been resumed, or tried again, since
                continue
            if has_paused(end, run.status):
                return self._paused()
            diagnosis = _diagnosis(end)
            if self._last_sandbox or not pauses or not another_follows(end, run.status):
                return self._failed(str(diagnosis))
            get_run_logger().warning("%s. Another sandbox goes on.", diagnosis)
            self._board.all_lost(diagnosis.what)
            await set_within(self._kill, pauses.pop(0))
            number += 0 if end.end is End.NEVER_STARTED else 1
        return self._state(run)

    async def _sandbox(self, number: int, begun: Begun | None) -> SandboxEnd | Outcome:
        log = self._shipper.open(
            self._task_run_id, send=self.run.plan.stream_logs, on_sandbox=self._board.all_in_sandbox
        )
        attempt = Attempt(number, self._task_run_id, self._kill, log, get_run_logger(), begun=begun)
        try:
            return await self._attempts.attempt_pipeline(attempt)
        except NotAsked as error:
            return SandboxEnd(End.NEVER_STARTED, detail=str(error))

    def _read(self) -> PipelineRunResponse | None:
        """The run as ZenML has it now; None where it was deleted."""
        try:
            return Client().zen_store.get_run(self.run.run.id)
        except KeyError:
            return None

    def _state(self, run: PipelineRunResponse | None) -> State[None]:
        status = run.status if run is not None else None
        if status is ExecutionStatus.COMPLETED:
            return Completed()
        if run is not None and status is ExecutionStatus.FAILED:
            return self._failed(_exception_of(run))
        if status is ExecutionStatus.PAUSED and not self._kill.is_set():
            return self._paused()
        self.stopped = True
        return Cancelled(message="The pipeline was stopped.")

    def _paused(self) -> State[None]:
        self.paused = True
        return Completed(name=names.STATE_PAUSED, message="The run waits for an answer; no sandbox runs.")

    def _failed(self, why: str) -> State[None]:
        if self._kill.is_set():
            self.stopped = True
            return Cancelled(message="The pipeline was stopped.")
        self.failures[""] = why
        return Failed(message=why)

    async def look_back(self) -> None:
        """Find the sandboxes and steps that an earlier process of the flow left. Starts and ends nothing.

        Raises ``RunnerUnavailable``, and what Prefect's client or ZenML's store raises.
        """
        task_runs = await task_runs_of(self._client, UUID(self.run.flow_run_id))
        said = await read_said(self._client, [self._task_run_id])
        self._shipper.known.update(said.lines)
        keys = [names.sandbox_name(self.run.id, None, number, 1) for number in range(1, MOST_SANDBOXES + 1)]
        spec = self.run.plan.sandbox
        running = await self._runner.tagged({names.TAG_RUN_ID: self.run.id}, spec.modal_environment)
        alive = {box.name: box for box, _ in running}
        for box, tags in running:
            self._isolated.left(box, tags)
        await self._isolated.look_back(task_runs)
        known = [number for number, key in enumerate(keys, 1) if key in said.sandboxes or key in alive]
        if not known:
            return
        number = known[-1]
        key = keys[number - 1]
        where = alive.get(key)
        if where is None and not _was_judged(task_runs.get(self._task_run_id)):
            where = await self._runner.by_id(said.sandboxes[key])
        self._left = (number + 1, None) if where is None else (number, Begun(number, 1, StepRecord(), where))

    def _end_what_is_left(self) -> None:
        """Give the step runs an end that died with their sandbox."""
        if self.stopped:
            step_runs.stop_left(self.run.run)
        elif self.failures:
            why = Diagnosis("The pipeline's sandbox ended under the step", self.failures[""])
            step_runs.fail_left(self.run.run, why)


def _was_judged(task_run: TaskRun | None) -> bool:
    """Whether the process that was there before has seen the end of the sandbox, and not died over it."""
    state = task_run.state if task_run is not None else None
    return state is not None and state.is_final() and not state.is_crashed()


def _is_over(status: ExecutionStatus) -> bool:
    return status.is_finished or status is ExecutionStatus.PAUSED


def has_paused(end: SandboxEnd, status: ExecutionStatus) -> bool:
    """Whether the run has paused with this end of a sandbox, though ZenML says something else of it by now.

    Whoever resumes it has ZenML say so first, and is refused as long as this flow run is at work; or comes again.
    """
    return end.end is End.EXITED and end.exit_code == COMPLETED and status is ExecutionStatus.RESUMING


def another_follows(end: SandboxEnd, status: ExecutionStatus) -> bool:
    """Whether the orchestration goes on in another sandbox after this end of one, where ZenML says this of the run.

    ZenML's runner then decides what that costs its steps. The table is in ``docs/semantics.md``.
    """
    if _is_over(status):
        return False
    if end.end is End.EXITED:
        return end.exit_code not in _ITS_OWN
    return end.end not in (End.TIMED_OUT, End.TERMINATED)


def _diagnosis(end: SandboxEnd) -> Diagnosis:
    if end.end is End.EXITED and end.exit_code in _ITS_OWN:
        what = f"The pipeline's process exited with {end.exit_code}, and ZenML knows of no end of its run"
        return Diagnosis(what, end.detail, "Its log says why")
    return diagnose(end, of="pipeline")


def _exception_of(run: PipelineRunResponse) -> str:
    info = run.exception_info
    if info is None:
        return "ZenML's run has failed; its logs say why"
    return step_runs.message_of(info)
