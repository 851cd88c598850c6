"""What the Prefect flow does with its ZenML run: opens it, carries its plan out, ends both alike."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import AsyncClientContext, FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed, Paused, Suspended
from prefect.utilities.urls import url_for
from zenml.client import Client
from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID
from zenml.enums import ExecutionStatus
from zenml.metadata.metadata_types import MetadataType, Uri
from zenml.models import PipelineRunResponse
from zenml.orchestrators.publish_utils import publish_pipeline_run_metadata

from bridge import names, tracing
from bridge.cleanup import login
from bridge.cleanup.renewal import Renewal
from bridge.dynamic_pipelines.dynamic import DynamicPipeline
from bridge.errors import BridgeError, PrefectUnavailable, RunIsOver
from bridge.flow import left_as_it_is
from bridge.flow_run.eviction import is_eviction
from bridge.flow_run.flow_parts import FlowParts
from bridge.flow_run.left_open import close_task_runs
from bridge.flow_run.limits import check_limits
from bridge.flow_run.open_run import give_up, layer_of, open_run, own_run
from bridge.flow_run.per_step import PerStep
from bridge.flow_run.ready import Fate
from bridge.flow_run.resume import Earlier, end_sandboxes, look_back
from bridge.flow_run.run import Run, runner_of
from bridge.flow_run.step import Attempt, Attempts
from bridge.flow_run.watch import CANCELLED, Stop, Watch, carried_out
from bridge.flow_run.whole_pipeline import WholePipeline, summary
from bridge.host.fresh_keys import use_fresh_keys
from bridge.own_loop import on_own_loop
from bridge.plan import Mode
from bridge.prefect_side.outage import patiently, until_it_answers
from bridge.runners.base import Runner
from bridge.step_operators.operated_end import end_with
from bridge.submitting.scheduled import snapshot_for
from bridge.versions import other_bridge
from bridge.warming.foresight import earlier_durations
from bridge.warming.warm import WarmSteps
from bridge.watching import terminal
from bridge.watching.artifacts import Showing, pages
from bridge.watching.board import Board
from bridge.watching.events import StepEvents
from bridge.watching.logs import LogShipper
from bridge.watching.own_words import warn_in_run_logs
from bridge.zenml_side import step_runs, zenml_calls
from bridge.zenml_side.run_status import begin_stop, end_run, status_of
from bridge.zenml_side.step_records import StepRecords
from bridge.zenml_side.zenml_calls import ZenMLCalls

BEGIN_SECONDS = 45.0
"""How long a flow waits for ZenML before it has given a sign of life. With the half minute of ZenML's client after
that, and another one to say that it gives up, it is over before it counts as dead (``lease.FIRST_SIGN_SECONDS``)."""


def run_pipeline(flow_run: FlowRun, snapshot_id: UUID, run_id: UUID | None) -> State[None]:
    """Run a ZenML pipeline in a flow run, whose context is this one's, and return the state that it ends in.

    Args:
        flow_run: The flow run.
        snapshot_id: The ZenML snapshot to run; another one, if its schedule was changed meanwhile.
        run_id: The ZenML run to go on with, None for a new one.

    Raises what is a defect, after it was told to ZenML and Prefect.
    """
    terminal.show_once()
    warn_in_run_logs()
    try:
        given = snapshot_id
        zenml_calls.patiently(lambda: use_fresh_keys(Client().zen_store), BEGIN_SECONDS)
        snapshot_id = zenml_calls.patiently(lambda: snapshot_for(flow_run, given), BEGIN_SECONDS)
        planned = snapshot_id
        run = zenml_calls.patiently(lambda: open_run(planned, run_id, str(flow_run.id)), BEGIN_SECONDS)
        runner = runner_of(run.config, run.stack, run.plan.create_rate)
        check_limits(run.plan)
    except RunIsOver as error:
        close_task_runs(flow_run.id, UUID(error.run_id), str(error))
        return Cancelled(message=str(error)) if error.stopped else Failed(message=str(error))
    except BridgeError as error:
        if flow_run.run_count > 1:
            return _not_taken_up(own_run(snapshot_id, run_id, str(flow_run.id)), str(flow_run.id), str(error))
        _give_up(snapshot_id, run_id, str(flow_run.id), str(error))
        return Failed(message=str(error))
    except Exception as error:
        if flow_run.run_count > 1:
            # Maybe it is ZenML that can't be asked: then nothing says that the run is over.
            return left_as_it_is(str(flow_run.id), _defect(error), error)
        _give_up(snapshot_id, run_id, str(flow_run.id), _defect(error))
        raise
    _introduce(run, flow_run)
    for warning in (other_bridge(flow_run.deployment_version), login.warning()):
        if warning:
            get_run_logger().warning("%s", warning)
    get_run_logger().info("%s", run.plan)
    about = {
        names.SPAN_PIPELINE: run.plan.pipeline,
        names.SPAN_RUN_ID: run.id,
        names.SPAN_SNAPSHOT_ID: str(snapshot_id),
        names.SPAN_FLOW_RUN_ID: run.flow_run_id,
    }
    with tracing.span(f"run {run.plan.pipeline}", about) as noted:
        state = on_own_loop(
            lambda: carry_out(run, runner, life=flow_run.run_count),
            leave=lambda interruption: is_eviction(interruption, flow_run.id),
        )
        if not state.is_completed():
            noted.failed(state.message or state.type.value)
        return state


def _give_up(snapshot_id: UUID, run_id: UUID | None, flow_run_id: str, why: str) -> None:
    try:
        give_up(snapshot_id, run_id, flow_run_id, why)
    except Exception as error:
        # The flow run says why it has failed; this would stand in its place.
        get_run_logger().warning(
            "ZenML couldn't be told that the run has failed (%s: %s): `modal-prefect sweep --yes` ends it there.",
            type(error).__name__,
            error,
        )


def _introduce(run: Run, flow_run: FlowRun) -> None:
    try:
        introduce(run, flow_run)
    except Exception as error:
        # Names, tags and a link: worth no run.
        get_run_logger().warning(
            "The flow run and the ZenML run can't be told of each other: %s: %s", type(error).__name__, error
        )


def introduce(run: Run, flow_run: FlowRun) -> None:
    """Make the two runs find each other where ZenML didn't submit the flow run itself: a deployment made it."""
    name = names.prefect_name(run.run.name)
    parameters = {**flow_run.parameters, names.PARAMETER_SNAPSHOT_ID: str(run.snapshot.id)}
    if flow_run.name == name and flow_run.parameters == parameters:
        return
    # First: by the flow run's name and parameters a later process knows that both are done.
    metadata: dict[str, MetadataType] = {METADATA_ORCHESTRATOR_RUN_ID: str(flow_run.id)}
    if url := url_for(flow_run):
        metadata[names.METADATA_ORCHESTRATOR_URL] = Uri(url)
    publish_pipeline_run_metadata(run.run.id, {run.stack.orchestrator.id: metadata})
    user = run.run.user.name if run.run.user else None
    tags = names.flow_run_tags(run.id, run.plan.pipeline, run.plan.stack, user)
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, parameters=parameters, name=name, tags={*flow_run.tags, *tags})


@dataclass(frozen=True)
class _Ended:
    failures: dict[str, str]
    stopped: bool
    paused: bool = False


async def carry_out(run: Run, runner: Runner, *, life: int = 1) -> State[None]:
    """Run the plan to its end, on the running loop, inside a Prefect flow run; return the flow run's state.

    ``life`` counts the processes of the flow run, this one included: what earlier ones began is gone on with.

    Cancelled in the middle, it stops the run, ends its sandboxes and returns ``Cancelled``. Where it can't take up what
    an earlier process began, it ends nothing and returns ``Crashed``.
    """
    stop = Stop()
    work = asyncio.ensure_future(_CarryingOut(run, runner, stop, life).to_its_end())
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            stop.kill("the process in which its flow ran was interrupted")
            terminal.interrupted(run.run.name, run.plan.orphan_timeout)
    return work.result()


def _not_taken_up(left: PipelineRunResponse | None, flow_run_id: str, why: str) -> State[None]:
    """The state of a flow run that this process couldn't take up, by what became of its ZenML run before."""
    if left is None or left.status is ExecutionStatus.FAILED:
        return Failed(message=why)
    if left.status is ExecutionStatus.STOPPED:
        return Cancelled(message=why)
    return left_as_it_is(flow_run_id, why)


def _defect(error: Exception) -> str:
    return f"The flow itself failed: {type(error).__name__}: {error}"


class _CarryingOut:
    """One process of a flow run at work on its ZenML run.

    Args:
        run: The run.
        runner: Where its sandboxes are.
        stop: What ends it early.
        life: Which process of the flow run this is, from 1.
    """

    def __init__(self, run: Run, runner: Runner, stop: Stop, life: int) -> None:
        self._run = run
        self._runner = runner
        self._stop = stop
        self._life = life
        self._goes_on = life > 1
        self._taken_up = life == 1
        """Whether this process has in hand what an earlier one left: an error before that ends nothing."""
        self._thread = ZenMLCalls(login_comes_back=True)

    async def to_its_end(self) -> State[None]:
        """Bring both runs to their end and return the flow run's state. Raises a defect, of which ZenML was told."""
        run, stop = self._run, self._stop
        try:
            ended = await self._work()
            if ended.paused and not stop.requested:
                return paused(run)
            return await self._conclude(ended)
        except BridgeError as error:
            message = str(error)
            if not self._taken_up:
                return left_as_it_is(run.flow_run_id, message)
            await self._thread.call(lambda: end_run(run.run, failures={"": message}, stopped=stop.requested))
            return Failed(message=message)
        except Exception as error:
            # A defect, or an outage beyond patience: ZenML's run must not stay running for it.
            message = _defect(error)
            if not self._taken_up:
                return left_as_it_is(run.flow_run_id, message, error)
            await self._thread.call(lambda: end_run(run.run, failures={"": message}, stopped=False))
            raise
        finally:
            self._thread.close()

    async def _work(self) -> _Ended:
        """Run the plan among those who keep it alive, watch it and show it."""
        run, runner, thread = self._run, self._runner, self._thread
        # One client for the core and all its task runs.
        async with AsyncClientContext.get_or_create() as api, runner:
            board = Board(run.plan, listener=StepEvents(run), goes_on=self._goes_on)
            terminal.watch(board, run.run.name, lambda: pages(UUID(run.flow_run_id), run.run))
            most = run.plan.max_parallelism or runner.default_parallelism
            async with (
                Renewal(run.run, run.plan.orphan_timeout, self._life),
                LogShipper(api.client, UUID(run.flow_run_id)) as shipper,
                Watch(self._stop, api.client, run) as watch,
                Showing(api.client, run, board, runner),
                WarmSteps(run, runner, most, lambda: thread.call(lambda: earlier_durations(run.run))) as warm,
            ):
                truth = StepRecords(thread, lambda steps: step_runs.latest(run.run, steps))
                attempts = Attempts(run, runner, thread, truth, warm)
                parts = FlowParts(run, runner, api.client, thread, shipper, board, attempts)
                ended = await self._run_plan(parts, watch, most)
                if self._stop.requested or ended.failures:
                    await end_with(run)
                await until_it_answers(api.client, UUID(run.flow_run_id))
                return ended

    async def _run_plan(self, parts: FlowParts, watch: Watch, most: int | None) -> _Ended:
        """Run it in its mode, ``most`` sandboxes at once; or finish the stop that an earlier process began."""
        why = await self._stopped_before(watch)
        if why is not None:
            return await self._finish_the_stop(parts, why)
        mode = self._run.plan.mode
        if mode is Mode.DYNAMIC:
            return await self._dynamic(parts, watch, most)
        earlier = await self._earlier(parts)
        if mode is Mode.PER_STEP:
            return await _per_step(parts, watch, most, earlier)
        return await _whole_pipeline(parts, watch, earlier)

    async def _stopped_before(self, watch: Watch) -> str | None:
        """Why the run was to stop when an earlier process died; None if it wasn't."""
        if not self._goes_on:
            return None
        if self._run.run.status is ExecutionStatus.STOPPING:
            return "it was stopped in ZenML"
        return CANCELLED if await patiently(watch.cancelled_already) else None

    async def _finish_the_stop(self, parts: FlowParts, reason: str) -> _Ended:
        """End what a process left that died before it had stopped its run."""
        run, mode = self._run, self._run.plan.mode
        self._stop.kill(reason)
        # First, else a step that ends before its run is stopping would be tried again.
        await self._thread.call(lambda: begin_stop(run.run))
        if mode is not Mode.DYNAMIC:
            try:
                earlier = await _look_back(parts)
                if mode is Mode.PER_STEP:
                    await _end_steps(parts, earlier, reason)
                else:
                    await _end_pipeline(parts, earlier)
            except Exception as error:
                # What its steps said is worth less than the end of its sandboxes, which comes next.
                get_run_logger().warning("What its steps said last can't all be read: %s", error)
        await end_sandboxes(run, self._runner)
        await self._thread.call(lambda: step_runs.stop_left(run.run))
        await _close_task_runs(parts, "The run was stopped.")
        return _Ended({}, True)

    async def _earlier(self, parts: FlowParts) -> Earlier:
        """Take up what there is already: of an earlier process, or of the run that this one replays."""
        run = self._run
        if self._goes_on:
            earlier = await _look_back(parts)
            self._taken_up = True
            return earlier
        if run.run.original_run:
            steps = [step.name for step in run.plan.steps]
            return Earlier(await self._thread.call(lambda: step_runs.latest(run.run, steps)))
        return Earlier()

    async def _dynamic(self, parts: FlowParts, watch: Watch, most: int | None) -> _Ended:
        pipeline = DynamicPipeline(parts, layer_of(self._run), parallelism=most, goes_on=self._goes_on)
        if self._goes_on:
            await pipeline.look_back()
            self._taken_up = True
        async with carried_out(watch, drain=pipeline.drain, kill=pipeline.kill):
            await pipeline.execute()
        if self._goes_on:
            await _close_task_runs(parts, "Nobody worked on it any more.", pipeline.task_runs())
        return _Ended(pipeline.failures, pipeline.stopped, pipeline.paused)

    async def _conclude(self, ended: _Ended) -> State[None]:
        run, stop, thread = self._run, self._stop, self._thread
        # First: a step that was ended for it may say of itself that it has failed.
        failures = {"": stop.failure, **ended.failures} if stop.failure else dict(ended.failures)
        stopped = (stop.requested and not stop.failure) or (ended.stopped and not failures)
        await thread.call(lambda: end_run(run.run, failures=failures, stopped=stopped))
        status = await thread.call(lambda: status_of(run.run)) if stopped and stop.reason != CANCELLED else None
        if status is ExecutionStatus.COMPLETED:
            get_run_logger().info("Its last step was over before the run could be stopped: %s.", stop.reason)
            return Completed()
        if stopped:
            # Also after a failure: Prefect takes no other end of a flow run that was cancelled.
            because = f": {stop.reason}" if stop.reason else ""
            return Cancelled(message=f"The run was stopped{because}.{_and_failed(failures)}")
        if failures:
            return Failed(message=summary(failures))
        return Completed()


def paused(run: Run) -> State[None]:
    """The state of a flow run whose ZenML run waits for an answer: its process ends, and another one goes on with it.

    Prefect itself can resume one that a worker runs.
    """
    get_run_logger().info("The run is paused. When it was answered: `zenml pipeline runs resume %s`.", run.id)
    context = FlowRunContext.get()
    has_worker = context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
    return Suspended() if has_worker else Paused()


def _and_failed(failures: dict[str, str]) -> str:
    return f" Before that, {summary(failures)[:1].lower()}{summary(failures)[1:]}" if failures else ""


async def _look_back(parts: FlowParts) -> Earlier:
    return await look_back(parts.run, parts.runner, parts.client, parts.thread, parts.shipper)


async def _close_task_runs(parts: FlowParts, because: str, own: Collection[UUID] = ()) -> None:
    """End the task runs that an earlier process left open and nobody took up; not this process's ``own``."""
    run_id, flow_run_id = parts.run.run.id, UUID(parts.run.flow_run_id)
    await until_it_answers(parts.client, flow_run_id)
    try:
        await parts.thread.call(lambda: close_task_runs(flow_run_id, run_id, because, own=own))
    except PrefectUnavailable as error:
        # They are the picture of a run whose end doesn't hang on it.
        get_run_logger().warning("Task runs may stay open in Prefect: %s", error)


async def _end_steps(parts: FlowParts, earlier: Earlier, reason: str) -> None:
    """End the steps that an earlier process began, having read what nobody has read of them; no other one begins."""
    steps = PerStep(parts, earlier=earlier, parallelism=None)
    steps.kill(reason)
    await steps.run_all()


async def _end_pipeline(parts: FlowParts, earlier: Earlier) -> None:
    """End the sandbox of the pipeline that an earlier process began, having read what nobody has read of its output."""
    if earlier.pipeline is None or earlier.pipeline.where is None:
        return
    run, kill = parts.run, asyncio.Event()
    kill.set()
    task_run_id = names.task_run_id(run.flow_run_id, None)
    log = parts.shipper.open(task_run_id, send=run.plan.stream_logs)
    begun = earlier.pipeline
    await parts.attempts.attempt_pipeline(Attempt(begun.number, task_run_id, kill, log, get_run_logger(), begun=begun))


async def _per_step(parts: FlowParts, watch: Watch, most: int | None, earlier: Earlier) -> _Ended:
    steps = PerStep(parts, earlier=earlier, parallelism=most)
    async with carried_out(watch, drain=steps.graph.drain, kill=steps.kill):
        await steps.run_all()
    return _Ended(steps.failures, Fate.STOPPED in steps.graph.fates.values())


async def _whole_pipeline(parts: FlowParts, watch: Watch, earlier: Earlier) -> _Ended:
    pipeline = WholePipeline(parts, earlier)
    async with carried_out(watch, drain=pipeline.drain, kill=pipeline.end):
        await pipeline.execute()
    return _Ended(pipeline.failures, pipeline.stopped)
