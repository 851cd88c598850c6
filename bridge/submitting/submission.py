"""From ZenML's client to a Prefect flow run: made here, run in this process or by a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Pending, Scheduled
from prefect.utilities.urls import url_for
from pydantic import JsonValue
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
from zenml.stack import Stack

from bridge import names, tracing
from bridge.errors import RunNotPossible, how_to_replay
from bridge.flow import zenml_pipeline
from bridge.flow_run.run import runner_of
from bridge.own_loop import on_own_loop
from bridge.plan import Plan
from bridge.prefect_side.outage import once_it_answers
from bridge.prefect_side.prefect_api import prefect_api
from bridge.runners.base import AsksAhead, Runner
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectOrchestratorSettings
from bridge.submitting.deployments import ensure_deployment
from bridge.submitting.schedule_store import create_schedule
from bridge.submitting.waiting import raise_for
from bridge.submitting.work_pool import check_pool, default_queue, nobody_works
from bridge.upstream_prefect import labels_of_trace, run_existing_flow_run
from bridge.watching.terminal import show_run

T = TypeVar("T")

SUBMISSION_OUTAGE_SECONDS = 10.0
"""How long Modal may be away while somebody waits for a run to start; the run itself has more patience."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """What a component and the settings of a run say of the work pool, and what its flow needs of this machine."""

    component: str
    config: ModalPrefectOrchestratorConfig
    settings: ModalPrefectOrchestratorSettings
    environment: dict[str, str]

    @property
    def job_variables(self) -> dict[str, JsonValue]:
        """The job variables of the run, the flow's environment among them."""
        return self.with_variables({})

    def with_variables(self, more: dict[str, str]) -> dict[str, JsonValue]:
        """The same, with more variables in the flow's environment."""
        variables = dict(self.settings.job_variables)
        given, ours = variables.get("env"), {**self.environment, **more}
        if ours:
            variables["env"] = {**ours, **(given if isinstance(given, dict) else {})}
        return variables


def check_runner(config: ModalPrefectOrchestratorConfig, stack: Stack, plan: Plan) -> None:
    """Log in where sandboxes will run, so that a wrong token or an unknown secret is an error before anything starts.

    Raises ``SandboxRefused`` (with ``CredentialsRefused``) or ``RunnerUnavailable``.
    """

    async def check(runner: Runner) -> None:
        if isinstance(runner, AsksAhead):
            await runner.check(names.app_name(plan.pipeline), plan.sandbox_specs)

    ask_runner(config, stack, check)


def ask_runner(
    config: ModalPrefectOrchestratorConfig, stack: Stack, question: Callable[[Runner], Coroutine[Any, Any, T]]
) -> T:
    """Connect to where sandboxes will run; return what the question returns, raise what it raises, ``RunnerError``."""

    async def ask() -> T:
        async with runner_of(config, stack, outage=SUBMISSION_OUTAGE_SECONDS) as runner:
            return await question(runner)

    return on_own_loop(ask)


def create_flow_run(
    snapshot: PipelineSnapshotResponse, run: PipelineRunResponse, plan: Plan
) -> tuple[FlowRun, str | None]:
    """Make the flow run of a ZenML run, not started yet; return it with its page in the UI, if there is one.

    Raises ``PrefectUnavailable``.
    """
    flow = zenml_pipeline.with_options(name=names.prefect_name(plan.pipeline))
    with prefect_api() as client:
        flow_run = client.create_flow_run(
            flow,
            parameters=_parameters(snapshot, run),
            name=names.prefect_name(run.name),
            tags=_tags(run, plan),
            state=Pending(),
        )
    return flow_run, url_for(flow_run)


def submit_to_pool(
    pool: Pool, snapshot: PipelineSnapshotResponse, run: PipelineRunResponse, plan: Plan
) -> tuple[FlowRun, str | None]:
    """Make the flow run of a ZenML run for a worker to pick up; return it with its page in the UI, if there is one.

    Submitting a ZenML run twice gives the same flow run. Raises ``InvalidSettings`` where the pool can take no run,
    ``PrefectUnavailable``.
    """
    with prefect_api() as client:
        work_pool = check_pool(client, pool.config, pool.settings.work_queue)
        deployment_id = ensure_deployment(client, plan.pipeline, pool.component, work_pool)
        if not pool.settings.synchronous:  # who waits is told while waiting
            _warn_if_nobody_works(client, work_pool)
        trace = tracing.environment()
        flow_run = client.create_flow_run_from_deployment(
            deployment_id,
            parameters=_parameters(snapshot, run),
            name=names.prefect_name(run.name),
            tags=_tags(run, plan),
            idempotency_key=str(run.id),
            # Where none is sent Prefect takes that of the deployment, which its schedules have set.
            work_queue_name=pool.settings.work_queue or default_queue(client, work_pool),
            job_variables=pool.with_variables(trace),
            labels=dict(labels_of_trace(trace)),
        )
    return flow_run, url_for(flow_run)


def submit_schedule(pool: Pool, snapshot: PipelineSnapshotResponse, plan: Plan) -> tuple[UUID, str | None]:
    """Schedule a snapshot that has a ZenML schedule; return its deployment's id and page in the UI, if there is one.

    If it raises, no Prefect schedule is left. Raises ``InvalidSettings`` or ``PrefectUnavailable``.
    """
    with prefect_api() as client:
        work_pool = check_pool(client, pool.config, pool.settings.work_queue)
        _warn_if_nobody_works(client, work_pool)
        deployment_id = ensure_deployment(client, plan.pipeline, pool.component, work_pool)
        create_schedule(
            client,
            deployment_id,
            snapshot,
            work_queue=pool.settings.work_queue or default_queue(client, work_pool),
            job_variables=pool.job_variables,
        )
    return deployment_id, url_for("deployment", obj_id=deployment_id)


def _warn_if_nobody_works(client: SyncPrefectClient, work_pool: str) -> None:
    if warning := nobody_works(client, work_pool):
        _logger.warning("%s", warning)


def go_on(run: PipelineRunResponse) -> tuple[FlowRun, str | None]:
    """Let the flow run of a paused or failed run of a dynamic pipeline go on: ZenML resumes it, or tries it again.

    A worker picks it up where it has a deployment; else :func:`run_here` runs it. Raises ``RunNotPossible`` where a
    process is still at work on it, or it was deleted; ``PrefectUnavailable``.
    """
    with prefect_api() as client:
        try:
            flow_run = client.read_flow_run(UUID(run.orchestrator_run_id))
        except ObjectNotFound:
            raise RunNotPossible(
                f"run {run.id}: its flow run {run.orchestrator_run_id} was deleted in Prefect, or is in "
                f"another Prefect than this one (`prefect config view`). "
                f"Run what is left of it in a new one: {how_to_replay(run.id)}."
            ) from None
        state = flow_run.state
        if state is not None and not (state.is_final() or state.is_paused() or state.is_scheduled()):
            raise RunNotPossible(
                f"run {run.id}: its flow run {flow_run.id} is {state.name}: a process works on it. Try again when that "
                f"has ended; where it has died, `modal-prefect resume {run.id}`."
            )
        again: State[None] = Scheduled(message="ZenML goes on with the run.")
        client.set_flow_run_state(flow_run.id, again, force=True)
        return client.read_flow_run(flow_run.id), url_for(flow_run)


def withdraw(flow_run: FlowRun) -> None:
    """Cancel a flow run whose submission failed after all. Raises ``PrefectUnavailable``."""
    with prefect_api() as client:
        client.set_flow_run_state(flow_run.id, Cancelled(message="Its submission failed."), force=True)


def _parameters(snapshot: PipelineSnapshotResponse, run: PipelineRunResponse) -> dict[str, str]:
    return {names.PARAMETER_SNAPSHOT_ID: str(snapshot.id), names.PARAMETER_RUN_ID: str(run.id)}


def _tags(run: PipelineRunResponse, plan: Plan) -> list[str]:
    return names.flow_run_tags(str(run.id), plan.pipeline, plan.stack, run.user.name if run.user else None)


def run_here(flow_run: FlowRun, plan: Plan) -> None:
    """Run the flow run in this process, to its end; first wait for Prefect's API, if it is away.

    Raises ``RunFailed`` or ``RunStopped`` with its message unless it completed.
    """
    flow = zenml_pipeline.with_options(name=names.prefect_name(plan.pipeline))
    parameters: dict[str, object] = dict(flow_run.parameters)
    with show_run(), once_it_answers():
        state = run_existing_flow_run(flow, flow_run, parameters)
    raise_for(state)
