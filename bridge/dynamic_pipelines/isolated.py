"""An isolated step of a dynamic pipeline, as data: which sandbox, which command, for which step run. No clock, no I/O.

Its settings and resources are known when it is called, not when the pipeline is submitted. It is a run of one step to
:mod:`bridge.flow_run.step`, which makes the attempt as for any other step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from uuid import UUID

from zenml.config.pipeline_configurations import PipelineConfiguration
from zenml.config.step_configurations import StepConfiguration
from zenml.constants import ORCHESTRATOR_DOCKER_IMAGE_KEY
from zenml.models import PipelineSnapshotResponse

from bridge import names
from bridge.errors import NotTranslatable, RunNotPossible
from bridge.flow_run.run import Run
from bridge.plan import Plan, StepPlan
from bridge.planning.layers import ComponentSettings, Values, declared, keys_of, made, merged, settings_under
from bridge.planning.one_sandbox import SHARED
from bridge.planning.translate import NOT_DYNAMIC
from bridge.runners.base import SandboxRequest
from bridge.settings import RUN_LEVEL, ModalPrefectOrchestratorSettings
from bridge.step_operators.single_step import SingleStepRun, Wishes, plan_around, step_plan, wishes

OF_THE_RUN = (*sorted(RUN_LEVEL), "modal_environment")
"""Settings that one pipeline has for all: for itself and for the child pipelines that it calls, which inherit them."""
_RELIED_ON = frozenset({"max_parallelism", "orphan_timeout", "modal_environment"})
"""Those of them without which a child would have more at once, cost more or run elsewhere than it says: refused. The
others change nothing for it, which is said."""
_MODALS = frozenset({"gpu", *SHARED}) - {"timeout", "concurrency_limit"}
"""What only Modal's sandboxes can have."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What lies beneath the settings of a step: the component's, and the pipelines'."""

    component: ComponentSettings
    """What the orchestrator's config says; only declared settings are read."""
    name: str
    """The orchestrator's name."""
    root: PipelineConfiguration
    """That of the pipeline that is run: in the sandbox of its function are all inline steps, those of children too."""
    child: PipelineConfiguration | None = None
    """That of the child pipeline whose step it is."""


def wishes_of(step: str, config: StepConfiguration, layer: Layer) -> Wishes[ModalPrefectOrchestratorSettings]:
    """Read the settings and resources of an isolated step. Raises ``InvalidSettings`` and its child."""
    _check_of_the_run(step, config, layer)
    where = _step(step)
    inherited = {
        field: value for field, value in _said(layer, layer.root, "the pipeline").items() if field in OF_THE_RUN
    }
    settings = _made(layer, where, inherited, _said(layer, config, where))
    return wishes(step, config, settings, layer.component.runner)


def unused_of_child(layer: Layer) -> tuple[str, ...]:
    """What a child pipeline says and nothing is done about; none where the step isn't of one."""
    if layer.child is None:
        return ()
    child = _name_of(layer.child)
    of_root = _said(layer, layer.root, "the pipeline")
    wanted = _made(layer, child, of_root, _said(layer, layer.child, child))
    root = _made(layer, "the pipeline", of_root)
    warnings = []
    for field in dict.fromkeys((*OF_THE_RUN, "gpu", *SHARED)):
        if getattr(wanted, field) == getattr(root, field):
            continue
        if _is_nothing_here(field, layer):
            why = "runner='process' runs the steps on this machine"
        elif field not in OF_THE_RUN or field in _RELIED_ON:
            continue  # its steps have it, or are refused
        elif field in NOT_DYNAMIC:
            why = "the pipeline is dynamic"
        else:
            why = "that of the pipeline that is run holds"
        warnings.append(f"{field} of {child}: not used, {why}.")
    return tuple(warnings)


def check_inline(step: str, config: StepConfiguration, layer: Layer) -> None:
    """Refuse what an inline step can't have for itself, since it runs in the sandbox of the orchestration.

    Raises ``InvalidSettings`` and its child ``NotTranslatable``.
    """
    _check_of_the_run(step, config, layer)
    for field, value, where in _others(("gpu", *SHARED), step, config, layer):
        if where != _step(step) and _is_nothing_here(field, layer):
            continue  # of a child: `unused_of_child`
        raise NotTranslatable(
            f"{field} of {where}",
            value,
            f"step {step} runs inline, in the sandbox of the pipeline that is run",
            f'Write @step(runtime="isolated") to give it a sandbox of its own, or set {field} on the pipeline '
            "that is run",
        )


def _check_of_the_run(step: str, config: StepConfiguration, layer: Layer) -> None:
    for field, value, where in _others(OF_THE_RUN, step, config, layer):
        if where != _step(step) and (field not in _RELIED_ON or _is_nothing_here(field, layer)):
            continue  # of a child: `unused_of_child`
        raise NotTranslatable(
            f"{field} of {where}",
            value,
            # They are all listed, and ended, together.
            "all sandboxes of a dynamic pipeline are in one Modal environment"
            if field == "modal_environment"
            else "this setting belongs to the run as a whole",
            f"Set {field} on the pipeline that is run or on the component, and take it off {where}",
        )


def _is_nothing_here(field: str, layer: Layer) -> bool:
    return layer.component.runner == "process" and field in _MODALS


def _step(step: str) -> str:
    return f"step {step}"


def _name_of(child: PipelineConfiguration) -> str:
    return f"child pipeline {child.name}"


def _others(
    fields: Iterable[str], step: str, config: StepConfiguration, layer: Layer
) -> Iterator[tuple[str, object, str]]:
    """Those of ``fields`` for which a step has another value than the pipeline that is run: name, value, who says so.

    What nobody says is as in the pipeline that is run.
    """
    of_step = _step(step)
    # ZenML has laid the step's own over those of its pipeline by now.
    said, of_root = _said(layer, config, of_step), _said(layer, layer.root, "the pipeline")
    wanted, root = _made(layer, of_step, of_root, said), _made(layer, "the pipeline", of_root)
    child = _name_of(layer.child) if layer.child is not None else ""
    of_child = _said(layer, layer.child, child) if layer.child is not None else {}
    for field in fields:
        value = getattr(wanted, field)
        if value != getattr(root, field):
            yield field, value, child if field in of_child and of_child[field] == said.get(field) else of_step


def _said(layer: Layer, config: StepConfiguration | PipelineConfiguration, where: str) -> Values:
    own = settings_under(keys_of("orchestrator", layer.name), config.settings, where)
    return declared(ModalPrefectOrchestratorSettings, own)


def _made(layer: Layer, where: str, *said: Values) -> ModalPrefectOrchestratorSettings:
    kind = ModalPrefectOrchestratorSettings
    return made(kind, reduce(merged, said, declared(kind, layer.component.values)), where)


def image_of(step: str, config: StepConfiguration, snapshot: PipelineSnapshotResponse) -> str:
    """The image of an isolated step: of its template in ``depends_on``, else that of the pipeline.

    Raises ``RunNotPossible`` where none was built.
    """
    docker = config.docker_settings
    if docker.skip_build and docker.parent_image:
        return docker.parent_image
    try:
        if snapshot.build is None:
            raise KeyError(snapshot.id)
        return snapshot.build.get_image(ORCHESTRATOR_DOCKER_IMAGE_KEY, step=config.template)
    except KeyError as error:
        raise RunNotPossible(
            f"No image was built for step {step}. Run the pipeline again, which builds one; where the step has "
            "DockerSettings of its own, name it in @pipeline(depends_on=[...])."
        ) from error


def plan_of(
    step: str,
    config: StepConfiguration,
    snapshot: PipelineSnapshotResponse,
    wishes: Wishes[ModalPrefectOrchestratorSettings],
    image: str | None,
) -> Plan:
    """The plan of one isolated step run. Its own retries are ZenML's, each a step run of its own."""
    plan = step_plan(step, config, snapshot, wishes, image)
    return plan_around([replace(plan, concurrency_limit=wishes.settings.concurrency_limit)], snapshot)


@dataclass(frozen=True)
class IsolatedRun(SingleStepRun):
    """A run, perhaps that of a child pipeline, of which one isolated step run is carried out."""

    root: Run
    """The run that the flow works on: whose sandboxes it ends, and whose lease they live on."""

    @property
    def sandbox_name(self) -> str:
        """What its sandbox is called."""
        return names.isolated_name(str(self.step_run_id))

    def tags(self, step: str | None) -> dict[str, str]:
        """The tags of its sandbox."""
        return {**self.root.tags(step), names.TAG_STEP_RUN_ID: str(self.step_run_id)}

    def step_request(
        self, step: StepPlan, host_command: tuple[str, ...], task_run_id: UUID, attempt: int, sandbox: int
    ) -> SandboxRequest:
        """Its sandbox, in the app of the run that the flow works on."""
        request = super().step_request(step, host_command, task_run_id, attempt, sandbox)
        environment = {**self.environment, names.ENV_TASK_RUN_ID: str(task_run_id)}
        return replace(request, app=names.app_name(self.root.plan.pipeline), environment=environment)
