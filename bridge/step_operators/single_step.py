"""A step that is carried out by itself, as data: what step operators' and isolated steps have in common. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from zenml.config.step_configurations import StepConfiguration
from zenml.models import PipelineSnapshotResponse

from bridge import names
from bridge.flow_run.run import Run
from bridge.plan import FailureMode, Mode, Plan, Resources, RunnerKind, SandboxSpec, StepPlan
from bridge.planning import ignored
from bridge.planning.network import check_network, check_way_to_zenml
from bridge.planning.resources import asked, with_gpu
from bridge.planning.translate import sandbox_spec, texts
from bridge.runners.base import SandboxRequest
from bridge.settings import SandboxSettings

Settings = TypeVar("Settings", bound=SandboxSettings)


@dataclass(frozen=True, slots=True)
class Wishes(Generic[Settings]):
    """What a step asks for, and what of it is not used."""

    settings: Settings
    resources: Resources
    warnings: tuple[str, ...] = ()

    @property
    def sandbox(self) -> SandboxSpec:
        """The sandbox that is asked for, without its image."""
        return sandbox_spec(self.settings, self.resources, None)


@dataclass(frozen=True)
class SingleStepRun(Run, ABC):
    """A run of which one step run is carried out, that somebody else has made.

    ``command`` is that of a command step; None where the step is a Python function.
    """

    step_run_id: UUID
    command: tuple[str, ...] | None

    @property
    def step(self) -> StepPlan:
        """The step."""
        return self.plan.steps[0]

    @property
    @abstractmethod
    def sandbox_name(self) -> str:
        """What its sandbox is called: the same however often it is asked for."""

    def tags(self, step: str | None) -> dict[str, str]:
        """The tags of its sandbox."""
        return {**super().tags(step), names.TAG_STEP_RUN_ID: str(self.step_run_id)}

    def step_request(
        self, step: StepPlan, host_command: tuple[str, ...], task_run_id: UUID, attempt: int, sandbox: int
    ) -> SandboxRequest:
        """Its sandbox."""
        return SandboxRequest(
            name=self.sandbox_name,
            app=names.app_name(self.plan.pipeline),
            command=self.command or host_command,
            spec=step.sandbox,
            environment=self.environment,
            secret_environment=self.secret_environment,
            tags={**dict(step.sandbox.tags), **self.tags(step.name)},
        )


def wishes(step: str, config: StepConfiguration, settings: Settings, runner: RunnerKind) -> Wishes[Settings]:
    """What a step with these settings asks of this runner. Raises ``InvalidSettings`` for resources it can't have."""
    where = f"step {step}"
    given = config.settings.get("resources")
    values: dict[str, object] = dict(given) if given is not None else {}
    resources = with_gpu(asked(values, where), texts(settings.gpu), where, type(settings).__name__)
    if runner == "process":
        return Wishes(settings, resources, ignored.of_step(sandbox_spec(settings, resources, None), config.settings))
    check_network(settings, where, needs_zenml=config.command is None)
    return Wishes(settings, resources)


def check_reach(step: str, config: StepConfiguration, found: Wishes[Settings], runner: RunnerKind, zenml: str) -> None:
    """Refuse a step whose sandbox could never report to ZenML's server at this URL.

    Nothing for a command, which tells ZenML nothing, nor for a local process. Raises ``NotTranslatable``.
    """
    if runner == "modal" and config.command is None:
        check_way_to_zenml(found.sandbox, f"step {step}", zenml)


def step_plan(
    step: str,
    config: StepConfiguration,
    snapshot: PipelineSnapshotResponse,
    wishes: Wishes[Settings],
    image: str | None,
) -> StepPlan:
    """The step alone. Its own retries are those of whoever made its step run, each a step run of its own."""
    settings = wishes.settings
    return StepPlan(
        name=step,
        upstream=(),
        command=("operated", "--snapshot-id", str(snapshot.id), "--step", step),
        sandbox=sandbox_spec(settings, wishes.resources, image),
        caching=False,
        stream_logs=settings.stream_logs,
        infrastructure_retries=settings.infrastructure_retries,
        reports=config.command is None,
    )


def plan_around(steps: Sequence[StepPlan], snapshot: PipelineSnapshotResponse) -> Plan:
    """The plan of a run of nothing but these."""
    configuration = snapshot.pipeline_configuration
    return Plan(
        pipeline=configuration.name,
        snapshot_id=str(snapshot.id),
        stack=snapshot.stack.name if snapshot.stack else "",
        mode=Mode.PER_STEP,
        failure_mode=FailureMode(configuration.execution_mode.value),
        steps=tuple(steps),
        warm=False,
    )
