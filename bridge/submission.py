"""From ZenML's client to a Prefect flow run: made here, run in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings
from prefect.states import Pending
from prefect.utilities.urls import url_for
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
from zenml.stack import Stack

from bridge import names
from bridge.errors import RunFailed, RunNotPossible, RunStopped
from bridge.flow import make_runner, on_own_loop, zenml_pipeline
from bridge.plan import Mode, Plan
from bridge.runners.base import AsksAhead
from bridge.settings import ModalPrefectOrchestratorConfig
from bridge.terminal import show_run
from bridge.upstream_prefect import run_existing_flow_run


@contextlib.contextmanager
def prefect_settings(config: ModalPrefectOrchestratorConfig) -> Iterator[None]:
    """Use the Prefect API that the component names; where it names none, Prefect's own configuration."""
    updates = {}
    if config.prefect_api_url is not None:
        updates[PREFECT_API_URL] = config.prefect_api_url
    if config.prefect_api_key is not None:
        updates[PREFECT_API_KEY] = config.prefect_api_key
    if not updates:
        yield
        return
    with temporary_settings(updates=updates):
        yield


def check_runner(config: ModalPrefectOrchestratorConfig, stack: Stack, plan: Plan) -> None:
    """Log in where sandboxes will run, so that a wrong token or an unknown secret is an error before anything starts.

    Raises ``SandboxRefused`` (with ``CredentialsRefused``) or ``RunnerUnavailable``.
    """
    runner = make_runner(config, stack, plan)
    specs = [plan.sandbox] if plan.mode is Mode.PIPELINE else list(dict.fromkeys(step.sandbox for step in plan.steps))

    async def ask() -> None:
        async with runner:
            if isinstance(runner, AsksAhead):
                await runner.check(names.app_name(plan.pipeline), specs)

    on_own_loop(ask)


def create_flow_run(
    snapshot: PipelineSnapshotResponse, run: PipelineRunResponse, plan: Plan
) -> tuple[FlowRun, str | None]:
    """Make the flow run of a ZenML run, not started yet; return it with its page in the UI, if there is one.

    Raises ``RunNotPossible`` if Prefect's API doesn't answer.
    """
    flow = zenml_pipeline.with_options(name=names.prefect_name(plan.pipeline))
    try:
        with get_client(sync_client=True) as client:
            flow_run = client.create_flow_run(
                flow,
                parameters={"snapshot_id": str(snapshot.id), "run_id": str(run.id)},
                name=names.prefect_name(run.name),
                tags=names.flow_run_tags(str(run.id), plan.pipeline, plan.stack, run.user.name if run.user else None),
                state=Pending(),
            )
    except (PrefectException, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise RunNotPossible(
            f"Prefect's API at {PREFECT_API_URL.value() or 'a temporary local server'} can't be used "
            f"({type(error).__name__}: {error}). Check `prefect config view`, or set `prefect_api_url` on the "
            "orchestrator."
        ) from error
    return flow_run, url_for(flow_run)


def run_here(flow_run: FlowRun, plan: Plan) -> None:
    """Run the flow run in this process, to its end.

    Raises ``RunFailed`` or ``RunStopped`` with its message unless it completed.
    """
    flow = zenml_pipeline.with_options(name=names.prefect_name(plan.pipeline))
    parameters: dict[str, object] = dict(flow_run.parameters)
    with show_run():
        state = run_existing_flow_run(flow, flow_run, parameters)
    raise_for(state)


def raise_for(state: State[object]) -> None:
    """Raise the error that a final state of a flow run stands for; nothing for a completed one."""
    if state.is_completed():
        return
    if state.is_cancelled() or state.is_cancelling():
        raise RunStopped(state.message or "The run was stopped.")
    raise RunFailed(state.message or f"The flow run ended as {state.name}.")
