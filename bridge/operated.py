"""A step that the step operator runs, as data: which sandbox, which command, for which step run. No clock, no I/O.

It is a run of one step to :mod:`bridge.step`, which makes the attempt as for the orchestrator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from zenml.config.step_configurations import StepConfiguration
from zenml.models import PipelineSnapshotResponse

from bridge import names
from bridge.layers import declared, keys_of, made, merged, settings_under
from bridge.plan import Plan, StepPlan
from bridge.run import Run
from bridge.runners.base import SandboxRequest
from bridge.settings import ModalPrefectStepOperatorConfig, ModalPrefectStepOperatorSettings
from bridge.single_step import Wishes, plan_around, step_plan, wishes


def wishes_of(
    step: str, config: StepConfiguration, component: ModalPrefectStepOperatorConfig, component_name: str
) -> Wishes[ModalPrefectStepOperatorSettings]:
    """Read the settings and resources of a step: the component's, the pipeline's and the step's, the nearer wins.

    Raises ``InvalidSettings`` and its child ``NotTranslatable``.
    """
    where = f"step {step}"
    # ZenML has laid the step's own over the pipeline's by now; what the component doesn't set are no wishes of its.
    own = settings_under(keys_of("step_operator", component_name), config.settings, where)
    fields = component.model_fields_set & set(ModalPrefectStepOperatorSettings.model_fields)
    below: Mapping[str, object] = {field: getattr(component, field) for field in fields}
    kind = ModalPrefectStepOperatorSettings
    settings = made(kind, merged(declared(kind, below), declared(kind, own)), where)
    return wishes(step, config, settings, component.runner)


def check_steps(
    steps: Mapping[str, StepConfiguration], component: ModalPrefectStepOperatorConfig, component_name: str
) -> None:
    """Raise ``InvalidSettings`` for the first of these steps whose wishes can't be honoured."""
    for name, config in steps.items():
        wishes_of(name, config, component, component_name)


@dataclass(frozen=True)
class OperatedRun(Run):
    """A run of which one step run is carried out here, its step run made by whoever called the step operator.

    ``command`` is that of a command step; None where the step is a Python function.
    """

    step_run_id: UUID
    operator: str
    command: tuple[str, ...] | None = None

    @property
    def step(self) -> StepPlan:
        """The step."""
        return self.plan.steps[0]

    def tags(self, step: str | None) -> dict[str, str]:
        """The tags of its sandbox."""
        ours = {
            names.TAG_STEP_OPERATOR: names.modal_tag(self.operator),
            names.TAG_STEP_RUN_ID: str(self.step_run_id),
        }
        # Another orchestrator has no flow run.
        return {name: value for name, value in {**super().tags(step), **ours}.items() if value}

    def step_request(
        self, step: StepPlan, host_command: tuple[str, ...], task_run_id: UUID, attempt: int, sandbox: int
    ) -> SandboxRequest:
        """Its sandbox: the same name however often it is asked for."""
        return SandboxRequest(
            name=names.operated_name(str(self.step_run_id)),
            app=names.app_name(self.plan.pipeline),
            command=self.command or host_command,
            spec=step.sandbox,
            environment=self.environment,
            secret_environment=self.secret_environment,
            tags={**dict(step.sandbox.tags), **self.tags(step.name)},
        )


def plan_of(
    step: str,
    config: StepConfiguration,
    snapshot: PipelineSnapshotResponse,
    wishes: Wishes[ModalPrefectStepOperatorSettings],
    image: str | None,
) -> Plan:
    """The plan of one step that is carried out by itself. Its own retries are the orchestrator's."""
    plan = replace(step_plan(step, config, snapshot, wishes, image), step_operator=config.step_operator or False)
    return replace(plan_around([plan], snapshot), orphan_timeout=wishes.settings.orphan_timeout)
