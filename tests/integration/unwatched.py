"""A run whose flow doesn't look whether it is to be stopped: as the real one between two looks."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.context import AsyncClientContext
from prefect.states import Completed, Failed
from zenml.pipelines.run_utils import create_placeholder_run

from bridge.flow_run.flow_parts import FlowParts
from bridge.flow_run.open_run import load_snapshot, load_stack
from bridge.flow_run.per_step import PerStep
from bridge.flow_run.resume import Earlier
from bridge.flow_run.run import Run, runner_of
from bridge.flow_run.step import Attempts
from bridge.flow_run.whole_pipeline import WholePipeline, summary
from bridge.plan import Mode
from bridge.submitting.submission import create_flow_run
from bridge.upstream_prefect import run_existing_flow_run
from bridge.warming.warm import WarmSteps
from bridge.watching.board import Board
from bridge.watching.logs import LogShipper
from bridge.zenml_side import step_runs
from bridge.zenml_side.step_records import StepRecords
from bridge.zenml_side.zenml_calls import ZenMLCalls
from tests.flows import flow_of


async def _carry_out(run: Run) -> State[None]:
    thread, runner = ZenMLCalls(), runner_of(run.config, run.stack)
    async with (
        AsyncClientContext.get_or_create() as api,
        runner,
        LogShipper(api.client, UUID(run.flow_run_id)) as shipper,
        WarmSteps(run, runner, None) as warm,
    ):
        truth = StepRecords(thread, lambda steps: step_runs.latest(run.run, steps))
        attempts = Attempts(run, runner, thread, truth, warm)
        parts = FlowParts(run, runner, api.client, thread, shipper, Board(run.plan), attempts)
        if run.plan.mode is Mode.PER_STEP:
            steps = PerStep(parts, earlier=Earlier(), parallelism=None)
            await steps.run_all()
            return Completed() if not steps.failures else Failed(message=summary(steps.failures))
        return await WholePipeline(parts, Earlier()).execute()


def run_unwatched(snapshot_id: UUID, meanwhile: Callable[[UUID], None]) -> tuple[UUID, State[Any]]:
    """Run a snapshot and ``meanwhile``, which is told the ZenML run; return that and the state of the flow run."""
    snapshot = load_snapshot(snapshot_id)
    _, orchestrator = load_stack(snapshot)
    plan = orchestrator.plan(snapshot)
    run = create_placeholder_run(snapshot)
    flow_run, _ = create_flow_run(snapshot, run, plan)
    thread = Thread(target=meanwhile, args=(run.id,))
    thread.start()
    state = run_existing_flow_run(flow_of(_carry_out, plan.pipeline), flow_run, dict(flow_run.parameters))
    thread.join()
    return run.id, state
