"""The isolated steps of a dynamic pipeline, where its flow runs: each step run is a Prefect task run and a sandbox.

The orchestration asks for them through ZenML (:mod:`bridge.dynamic_pipelines.asks`), which nobody is told of, so ZenML
is asked. ZenML retries such a step itself, each time as another step run; Prefect never does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from uuid import UUID

from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from zenml.enums import ExecutionStatus
from zenml.utils.env_utils import get_runtime_environment

from bridge import names
from bridge.dynamic_pipelines import asks
from bridge.dynamic_pipelines.asks import Asked
from bridge.dynamic_pipelines.isolated import IsolatedRun, Layer, image_of, plan_of, wishes_of
from bridge.dynamic_pipelines.isolated_earlier import EarlierSteps, earlier_steps
from bridge.errors import BridgeError, InvalidSettings, RunnerUnavailable
from bridge.flow_run.flow_parts import FlowParts
from bridge.flow_run.limits import Limits
from bridge.flow_run.open_run import load_snapshot
from bridge.flow_run.outcome import Cost, Diagnosis, End, Outcome, SandboxEnd, StepRecord, Verdict, judge
from bridge.flow_run.ready import Gate, Pass, Slots
from bridge.flow_run.said import read_said
from bridge.flow_run.step import Attempt, Attempts, Begun
from bridge.flow_run.step_task import EngineTask
from bridge.planning import ignored
from bridge.runners.base import Sandbox
from bridge.runners.patience import while_it_may_live
from bridge.said_once import SaidOnce
from bridge.warming.warm import WarmSteps
from bridge.zenml_side import step_runs
from bridge.zenml_side.step_records import StepRecords

LOOK_SECONDS = 1.0
"""How often ZenML is asked for new ones."""


class IsolatedSteps:
    """Starts them as they are asked for, and sees them to their ends. One event loop.

    Args:
        parts: Those of the dynamic pipeline. Each step has an ``Attempts`` of its own.
        layer: What lies beneath the settings of its steps.
        parallelism: Most of them at once; None for any number.
        goes_on: Whether an earlier process of this flow run may have begun some.
    """

    def __init__(self, parts: FlowParts, layer: Layer, *, parallelism: int | None, goes_on: bool) -> None:
        run = self.run = parts.run
        self.layer = layer
        self.runner = parts.runner
        self.thread = parts.thread
        self.shipper = parts.shipper
        self.client = parts.client
        self.board = parts.board
        self.limits = Limits()
        self.goes_on = goes_on
        self.not_used = SaidOnce(ignored.of_run(run.snapshot, run.plan, run.config))
        """What is not used of settings is said at submission, or of the first step run that it is so of."""
        self._gate = Gate(Slots(parallelism))
        self._done_with: set[UUID] = set()
        """Step runs that want no sandbox, and children that have ended."""
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._passes: dict[UUID, Pass] = {}
        self._newest: dict[tuple[UUID, str], UUID] = {}
        """By run and step: the task run of its newest step run."""
        self._draining = False
        self._left: dict[UUID, Sandbox] = {}
        """By step run: sandboxes of an earlier process of the flow that aren't taken up yet."""
        self._ending: list[asyncio.Future[None]] = []
        self._found: list[Asked] = []
        self._earlier = EarlierSteps()
        self._ended: set[UUID] = set()
        """Step runs that ended before this process took them up."""

    def left(self, sandbox: Sandbox, tags: Mapping[str, str]) -> None:
        """An earlier process of the flow has left this sandbox of the run, which may be an isolated step's."""
        step_run_id = tags.get(names.TAG_STEP_RUN_ID, "")
        if sandbox.name == names.isolated_name(step_run_id):  # else it is a step operator's
            self._left[UUID(step_run_id)] = sandbox

    def drain(self) -> None:
        """Start no other one."""
        self._draining = True
        self._gate.forget()
        for permit in self._passes.values():
            permit.last_attempt = True
            if permit.waits:
                permit.kill.set()

    def kill(self) -> None:
        """End all of them."""
        self.drain()
        for permit in self._passes.values():
            permit.kill.set()

    async def look_back(self, task_runs: Mapping[UUID, TaskRun]) -> None:
        """Find what an earlier process of the flow began. Starts and ends nothing. Raises what ZenML's store raises."""
        # In this order: what has ended by the first look is found by the second.
        self._found, _ = await self.thread.call(self._look)
        self._earlier = await self.thread.call(lambda: earlier_steps(self.run, task_runs))

    def take_up(self) -> None:
        """Take up what was found of an earlier process of the flow: what still runs, and what has ended meanwhile."""
        runs = {one.step_run.id for one in self._found}
        self._newest.update(self._earlier.newest)
        for one in self._earlier.ended:
            if one.step_run.id not in runs:
                self._ended.add(one.step_run.id)
                self.let_go(one.step_run.id, end=not one.step_run.status.is_successful)
                self._take(one)
        self._newest.update(self._earlier.newest)  # an earlier attempt's end may be news to Prefect
        for one in self._found:
            self._take(one)

    async def keep_starting(self) -> None:
        """Start what is asked for until this is cancelled. Raises a defect, and an outage beyond patience."""
        while True:
            found, ended = await self.thread.call(self._look)
            for one in found:
                self._take(one)
            for step_run_id, status in ended.items():
                self.let_go(step_run_id, end=not status.is_successful)
            await asyncio.sleep(LOOK_SECONDS)
            for task in [task for task in self._tasks.values() if task.done()]:
                task.result()

    async def until_ended(self) -> None:
        """Wait for the ends of all that were started, and of what nobody took up. Raises a defect."""
        for step_run_id in self._left.keys() - self._tasks.keys():
            self.let_go(step_run_id, end=True)
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        if self._ending:
            await asyncio.wait(self._ending)
        for task in self._tasks.values():
            task.result()

    def task_runs(self) -> set[UUID]:
        """The task runs of all that were taken up or started."""
        return {names.isolated_task_run_id(self.run.flow_run_id, str(step_run_id)) for step_run_id in self._tasks}

    def is_newest(self, found: Asked) -> bool:
        """Whether a step run is the newest one of its step that has a task run."""
        task_run_id = names.isolated_task_run_id(self.run.flow_run_id, str(found.step_run.id))
        return self._newest.get((found.run.id, found.step_run.name)) == task_run_id

    def _look(self) -> tuple[list[Asked], dict[UUID, ExecutionStatus]]:
        """What is asked for, and the step runs with a sandbox left that have ended meanwhile."""
        found = asks.asked(self.run.run, self._done_with, self._tasks.keys() - self._ended)
        if not self._left:
            return found, {}
        # Read after that: what has ended by now isn't asked for any more, whichever look saw it.
        statuses = step_runs.statuses(self.run.run)
        return found, {each: statuses[each] for each in self._left if each in statuses and statuses[each].is_finished}

    def let_go(self, step_run_id: UUID, *, end: bool) -> None:
        """Nobody takes up the sandbox of a step run; a command goes on in it whatever ZenML says of its step."""
        sandbox = self._left.pop(step_run_id, None)
        if sandbox is not None and end:
            self._ending.append(asyncio.ensure_future(_end(sandbox)))

    def _take(self, found: Asked) -> None:
        step_run_id = found.step_run.id
        if step_run_id in self._tasks:
            self._passes[step_run_id].kill.set()  # it was stopped
            return
        has_ended = step_run_id in self._ended
        if self._draining and not has_ended:
            return
        permit = Pass(self._gate, found.step_run.name, 0, asyncio.Event(), held=has_ended)
        if step_run_id in self._left:
            permit.take_first()  # it runs
        self._passes[step_run_id] = permit
        key = (found.run.id, found.step_run.name)
        above = [self._newest.get((found.run.id, name)) for name in found.step_run.spec.upstream_steps]
        self._newest[key] = names.isolated_task_run_id(self.run.flow_run_id, str(step_run_id))
        upstream = [task_run for task_run in above if task_run is not None]
        task = _StepRunTask(self, found, permit, upstream, has_ended=has_ended)
        self._tasks[step_run_id] = asyncio.ensure_future(task.execute())


class _StepRunTask:
    """One isolated step run as one Prefect task run.

    One that ``has_ended`` before this process took it up needs no place among the others: only its end is to be told.
    """

    def __init__(
        self, owner: IsolatedSteps, asked: Asked, permit: Pass, upstream: list[UUID], *, has_ended: bool
    ) -> None:
        self._owner = owner
        self._asked = asked
        self._permit = permit
        self._upstream = upstream
        self._has_ended = has_ended
        self._step_run_id = asked.step_run.id
        self._task_run_id = names.isolated_task_run_id(owner.run.flow_run_id, str(self._step_run_id))
        self._row = asks.title(asked.run, asked.step_run.name)
        self._title = asks.title(asked.run, asked.step_run.name, asked.step_run.version)
        self._telling: list[asyncio.Future[None]] = []

    async def execute(self) -> None:
        if not self._has_ended:  # else ZenML has told the board
            self._show()
        state = await EngineTask(self._title, self._attempt).run(self._task_run_id, self._upstream)
        if not state.is_completed() and self._owner.is_newest(self._asked):
            self._owner.board.explain(self._row, state.message or "")

    def _show(self, gpu: str = "") -> None:
        attempt = self._asked.step_run.version
        self._owner.board.add(self._row, gpu, attempt=attempt, step_run=str(self._step_run_id))

    async def _attempt(self, number: int) -> State[None]:
        if self._has_ended:
            return _state(await self._end_of_earlier())
        if not await self._permit.take_again():
            self._owner.let_go(self._step_run_id, end=True)
            return Cancelled(message="Stopped before it started.")
        self._owner.let_go(self._step_run_id, end=False)  # it is this attempt's now
        try:
            return _state(await self._outcome())
        finally:
            self._permit.give_back()

    async def _outcome(self) -> Outcome:
        owner, logger = self._owner, get_run_logger()
        try:
            run, not_used = await owner.thread.call(self._isolated_run)
            owner.not_used.warn(not_used, logger)
            begun = await self._begun(run.step.sandbox.timeout) if owner.goes_on else None
            limit = run.step.concurrency_limit
            async with contextlib.AsyncExitStack() as stack:
                if begun is not None and begun.where is not None:
                    held = True
                    await stack.enter_async_context(
                        owner.limits.slot_meanwhile(limit, self._permit, self._task_run_id, logger)
                    )
                else:
                    held = await stack.enter_async_context(
                        owner.limits.slot(limit, self._permit, self._task_run_id, logger)
                    )
                if not held:
                    return Outcome(
                        Verdict.STOPPED,
                        Cost.NOTHING,
                        StepRecord(),
                        Diagnosis("The step was stopped before it had a slot of its concurrency limit"),
                    )
                return await self._in_sandbox(run, begun)
        except BridgeError as error:
            # Of its own making: the rest of the run has nothing to do with it.
            diagnosis = Diagnosis(_what(error), str(error))
            await owner.thread.call(lambda: step_runs.fail_step_run(self._step_run_id, diagnosis))
            return Outcome(Verdict.FAILED, Cost.EVERYTHING, StepRecord(), diagnosis)
        except Exception as error:
            # A defect, or an outage beyond patience: the pipeline's function would wait for this step for ever.
            broken = Diagnosis("The bridge failed", f"{type(error).__name__}: {error}")
            await owner.thread.call(lambda: step_runs.fail_step_run(self._step_run_id, broken))
            raise

    async def _end_of_earlier(self) -> Outcome:
        """How one ended that was over before this process took it up, once its output is read as far as it can be."""
        owner = self._owner
        try:
            run, _ = await owner.thread.call(self._isolated_run)
            return await self._in_sandbox(run, await self._begun(run.step.sandbox.timeout))
        except Exception as error:
            get_run_logger().warning("The rest of its output can't be read: %s: %s", type(error).__name__, error)
            record = await owner.thread.call(lambda: step_runs.record_of(self._step_run_id))
            return judge(SandboxEnd(End.LOST), record)

    async def _in_sandbox(self, run: IsolatedRun, begun: Begun | None) -> Outcome:
        owner, step = self._owner, run.step
        kill = self._permit.kill
        if self._has_ended:
            # ZenML has told the board already; and what failed stays what it was, whatever ends meanwhile.
            log = owner.shipper.open(self._task_run_id, send=step.stream_logs)
            kill = kill if self._asked.step_run.status.is_successful else asyncio.Event()
        else:
            self._show(str(step.sandbox.resources.gpu or ""))
            log = owner.shipper.open(
                self._task_run_id,
                send=step.stream_logs,
                on_sandbox=partial(self._is_there, run),
                on_lost=partial(owner.board.lost, self._row),
            )
        async with WarmSteps(run, owner.runner, None) as warm:
            truth = StepRecords.of_step_run(owner.thread, self._step_run_id)
            attempts = Attempts(run, owner.runner, owner.thread, truth, warm)
            attempt = Attempt(
                1, self._task_run_id, kill, log, get_run_logger(), step_run_id=str(self._step_run_id), begun=begun
            )
            outcome = await attempts.attempt_step(step, attempt)
        await asyncio.gather(*self._telling)
        if outcome.verdict is Verdict.SUCCEEDED and not step.reports:
            orchestrator = run.stack.orchestrator.id
            await owner.thread.call(lambda: asks.tell_command_end(self._step_run_id, orchestrator))
        return outcome

    def _is_there(self, run: IsolatedRun, sandbox_id: str, url: str | None) -> None:
        self._owner.board.in_sandbox(self._row, sandbox_id, url)
        if not run.step.reports:
            orchestrator = run.stack.orchestrator.id
            told = partial(asks.tell_sandbox, self._step_run_id, orchestrator, sandbox_id, url, self._task_run_id)
            self._telling.append(asyncio.ensure_future(self._owner.thread.call(told)))

    def _isolated_run(self) -> tuple[IsolatedRun, tuple[str, ...]]:
        """The run of this step, and what of its wishes is not used."""
        owner, asked = self._owner, self._asked
        root, config, name = owner.run, asked.step_run.config, asked.step_run.name
        is_root = asked.run.id == root.run.id
        child = asked.run.snapshot
        snapshot = root.snapshot if is_root or child is None else load_snapshot(child.id)
        of_child = snapshot.pipeline_configuration if snapshot is not root.snapshot else None
        layer = replace(owner.layer, child=of_child)
        wishes = wishes_of(name, config, layer)
        image = image_of(name, config, snapshot) if root.config.runner == "modal" else None
        run = IsolatedRun(
            snapshot=snapshot,
            run=asked.run,
            stack=root.stack,
            plan=plan_of(name, config, snapshot, wishes, image),
            config=root.config,
            flow_run_id=root.flow_run_id,
            environment=root.environment,
            secret_environment={**root.secret_environment, **get_runtime_environment(config, root.stack)},
            step_run_id=self._step_run_id,
            root=root,
            command=tuple(config.command) if config.command is not None else None,
        )
        return run, wishes.warnings

    async def _begun(self, timeout: int) -> Begun | None:
        """This attempt as an earlier process of the flow left it; None where it has to be, or can be, begun anew.

        A runner that can't be asked says nothing of its sandbox, which goes on meanwhile.
        """
        owner, step_run = self._owner, self._asked.step_run
        if step_run.status in (ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING):
            return None
        said = await read_said(owner.client, [self._task_run_id])
        owner.shipper.known.update(said.lines)
        record = StepRecord(step_runs.reported(step_run), str(step_run.id), step_run.version)
        sandbox_id = said.sandboxes.get(names.isolated_name(str(self._step_run_id)))
        if sandbox_id is None:  # Prefect was away when it came
            sandbox_id = await owner.thread.call(lambda: step_runs.sandbox_of(self._step_run_id))
        if sandbox_id:
            where = await while_it_may_live(lambda: owner.runner.by_id(sandbox_id), timeout)
            return Begun(1, 1, record, where)
        return Begun(1, 1, record, None) if self._has_ended else None


async def _end(sandbox: Sandbox) -> None:
    try:
        await sandbox.terminate()
    except RunnerUnavailable as error:
        message = "Sandbox %s of a step that has ended may run on; `modal-prefect sweep` ends it then: %s"
        get_run_logger().warning(message, sandbox.id, error)


def _what(error: BridgeError) -> str:
    if isinstance(error, InvalidSettings):
        return "The step's settings"
    if isinstance(error, RunnerUnavailable):  # for longer than the sandbox could live
        return "What became of the step's sandbox can't be found out"
    return "The step can't have a sandbox"


def _state(outcome: Outcome) -> State[None]:
    message = str(outcome.diagnosis) if outcome.diagnosis else None
    if outcome.verdict is Verdict.SUCCEEDED:
        return Completed()
    if outcome.verdict is Verdict.STOPPED:
        return Cancelled(message=message)
    return Failed(message=message)
