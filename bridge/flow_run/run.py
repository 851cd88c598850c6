"""A ZenML run as its flow and its sandboxes need it: who they are, what they get, what starts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
from zenml.orchestrators.utils import get_config_environment_vars
from zenml.stack import Stack
from zenml.utils.env_utils import get_runtime_environment

from bridge import names, runners
from bridge.errors import RunIsOver, how_to_replay
from bridge.host.attempt import StepCommand
from bridge.images.registry_login import registry_of
from bridge.plan import Plan, SandboxSpec, StepPlan
from bridge.runners.base import OUTAGE_SECONDS, Runner, Sandbox, SandboxRequest
from bridge.settings import RunnerConfig

LOG_ENVIRONMENT = {"ZENML_LOGGING_COLORS_DISABLED": "true", "PYTHONUNBUFFERED": "1"}
"""Output goes to Prefect's logs: as lines, at once, without a terminal's colours."""


@dataclass(frozen=True)
class Run:
    """A ZenML run and everything that its sandboxes need. Secrets are in ``secret_environment`` alone."""

    snapshot: PipelineSnapshotResponse
    run: PipelineRunResponse
    stack: Stack
    plan: Plan
    config: RunnerConfig
    flow_run_id: str
    environment: Mapping[str, str]
    secret_environment: Mapping[str, str] = field(repr=False)

    step_command: ClassVar[StepCommand] = "step"
    """What the step hosts of its warm sandboxes run each of its steps as."""

    @property
    def id(self) -> str:
        """The ZenML run's id."""
        return str(self.run.id)

    def tags(self, step: str | None) -> dict[str, str]:
        """The tags of a sandbox; ``step`` is None for the one of ``pipeline`` mode."""
        tags = {
            names.TAG_RUN_ID: self.id,
            names.TAG_PIPELINE: names.modal_tag(self.plan.pipeline),
            names.TAG_SERVER: str(Client().zen_store.get_store_info().id),
            names.TAG_STACK: names.modal_tag(self.plan.stack),
            names.TAG_FLOW_RUN_ID: self.flow_run_id,
        }
        return {**tags, names.TAG_STEP: names.modal_tag(step)} if step is not None else tags

    def step_request(
        self, step: StepPlan, host_command: tuple[str, ...], task_run_id: UUID, attempt: int, sandbox: int
    ) -> SandboxRequest:
        """The sandbox of one attempt of a step. ``sandbox`` counts the sandboxes of that attempt from 1."""
        config = self.snapshot.step_configurations[step.name].config
        return SandboxRequest(
            name=names.sandbox_name(self.id, step.name, attempt, sandbox),
            app=names.app_name(self.plan.pipeline),
            command=host_command,
            spec=step.sandbox,
            environment={**self.environment, names.ENV_TASK_RUN_ID: str(task_run_id)},
            secret_environment={**self.secret_environment, **get_runtime_environment(config, self.stack)},
            tags={**dict(step.sandbox.tags), **self.tags(step.name)},
        )

    def host_request(self, spec: SandboxSpec, host_command: tuple[str, ...], name: str) -> SandboxRequest:
        """A sandbox in which steps take turns. What is one step's alone comes with the call that starts it."""
        return SandboxRequest(
            name=name,
            app=names.app_name(self.plan.pipeline),
            command=host_command,
            spec=spec,
            environment=self.environment,
            secret_environment=self.secret_environment,
            tags={**dict(spec.tags), **self.tags(None)},
        )

    def pipeline_request(self, host_command: tuple[str, ...], task_run_id: UUID, attempt: int) -> SandboxRequest:
        """The one sandbox of ``pipeline`` mode."""
        spec = self.plan.sandbox
        return SandboxRequest(
            name=names.sandbox_name(self.id, None, attempt, 1),
            app=names.app_name(self.plan.pipeline),
            command=host_command,
            spec=spec,
            environment={**self.environment, names.ENV_TASK_RUN_ID: str(task_run_id)},
            secret_environment=self.secret_environment,
            tags={**dict(spec.tags), **self.tags(None)},
        )


def is_over(run: PipelineRunResponse) -> RunIsOver:
    """Return the error that a run has ended: it says what can be done about it."""
    return RunIsOver(
        f"run_id={run.id}: this run is {run.status.value} already. Start a new run of the snapshot, or run "
        f"what is left of it in a new one: {how_to_replay(run.id)}.",
        run_id=str(run.id),
        stopped=run.status is not ExecutionStatus.FAILED,
    )


def environment_of(run: PipelineRunResponse, snapshot: PipelineSnapshotResponse) -> dict[str, str]:
    """What ZenML needs in a sandbox, with a token minted now, for this run. All of it is treated as secret.

    A run that has ended gets no token any more, and needs no sandbox. Raises ``RunIsOver`` if it ended in the meantime
    otherwise than completed.
    """
    if run.status.is_finished:
        return {}
    try:
        plain, secrets = get_config_environment_vars(pipeline_run_id=run.id)
    except ValueError:
        # So ZenML answers for a run that has ended: maybe just now, after it was read.
        now = Client().get_pipeline_run(run.id, project=snapshot.project_id)
        if now.status is ExecutionStatus.COMPLETED:
            return {}
        if now.status.is_finished:
            raise is_over(now) from None
        raise
    environment = {**plain, **secrets, "ZENML_ACTIVE_PROJECT_ID": str(snapshot.project_id)}
    if snapshot.stack is not None:
        environment["ZENML_ACTIVE_STACK_ID"] = str(snapshot.stack.id)
    return environment


async def sandboxes_of(run_id: str, plan: Plan, runner: Runner) -> list[Sandbox]:
    """Return the sandboxes of a run that run. Raises ``RunnerUnavailable``."""
    tags = {names.TAG_RUN_ID: run_id}
    return [sandbox for environment in plan.modal_environments for sandbox in await runner.running(tags, environment)]


def runner_of(config: RunnerConfig, stack: Stack, create_rate: float = 4.0, outage: float = OUTAGE_SECONDS) -> Runner:
    """Make the runner that a component of a stack is configured for.

    ``create_rate`` is most sandboxes created per second, ``outage`` how many seconds Modal may be away.
    """
    return runners.create(
        config.runner,
        token_id=config.token_id,
        token_secret=config.token_secret,
        registry=registry_of(stack) if config.runner == "modal" else None,
        create_rate=create_rate,
        outage=outage,
    )
