"""A step that the step operator runs, as data: which sandbox, which command, for which step run. No clock, no I/O.

It is a run of one step to :mod:`bridge.flow_run.step`, which makes the attempt as for the orchestrator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from zenml.config.step_configurations import StepConfiguration
from zenml.models import PipelineSnapshotResponse

from bridge import names
from bridge.flow_run.run import Run
from bridge.host.attempt import StepCommand
from bridge.plan import Plan, SandboxSpec, StepPlan
from bridge.planning.layers import declared, keys_of, made, merged, settings_under
from bridge.runners.base import SandboxRequest
from bridge.settings import ModalPrefectStepOperatorConfig, ModalPrefectStepOperatorSettings
from bridge.step_operators.single_step import SingleStepRun, Wishes, check_reach, plan_around, step_plan, wishes
from bridge.warming.kinds import sharing


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


def warm_not_used(
    step: str, config: StepConfiguration, settings: ModalPrefectStepOperatorSettings, *, dynamic: bool
) -> tuple[str, ...]:
    """Say of a step of which somebody said that it is to be warm why it isn't; nothing where nobody said so."""
    if not settings.warm or "warm" not in settings.model_fields_set:
        return ()
    if config.command is not None:
        return (f"warm of step {step}: not used, a command step has a sandbox of its own.",)
    if dynamic:
        return (f"warm of step {step}: not used, in a dynamic pipeline nobody knows which steps come after it.",)
    return ()


def check_steps(
    steps: Mapping[str, StepConfiguration],
    component: ModalPrefectStepOperatorConfig,
    component_name: str,
    zenml: str | None = None,
) -> None:
    """Raise ``InvalidSettings`` for the first of these steps whose wishes can't be honoured.

    ``zenml`` is the URL of ZenML's server for their sandboxes, None where that isn't known here.
    """
    for name, config in steps.items():
        found = wishes_of(name, config, component, component_name)
        if zenml is not None:
            check_reach(name, config, found, component.runner, zenml)


@dataclass(frozen=True)
class OperatedRun(SingleStepRun):
    """A run of which one step run is carried out here, its step run made by whoever called the step operator.

    ``shared`` is the plan of the steps with which it may take turns in a sandbox, itself among them; None where it has
    one of its own. ``is_tried_again`` says whether there is another attempt at the step, in another step run, if this
    one fails.
    """

    operator: str
    shared: Plan | None = None
    is_tried_again: bool = False

    @property
    def sandbox_name(self) -> str:
        """What its sandbox is called."""
        return names.operated_name(str(self.step_run_id))

    def tags(self, step: str | None) -> dict[str, str]:
        """The tags of its sandbox, which belongs to the run that is carried out: that a child pipeline is called in."""
        root = {names.TAG_RUN_ID: str(self.run.root_run_id or self.run.id)}
        return _tags({**super().tags(step), **root}, self.operator)


@dataclass(frozen=True)
class SharedRun(Run):
    """A run whose steps on one step operator take turns in sandboxes: what those have, and no step alone."""

    operator: str
    own: frozenset[str] = frozenset()
    """The variables of single steps: ZenML's local orchestrator has them in its own environment while it calls."""

    step_command: ClassVar[StepCommand] = "operated"

    def host_request(self, spec: SandboxSpec, host_command: tuple[str, ...], name: str) -> SandboxRequest:
        """Such a sandbox, which has none of these variables."""
        return replace(super().host_request(spec, host_command, name), not_inherited=self.own)

    def tags(self, step: str | None) -> dict[str, str]:
        """The tags of such a sandbox, in which many step runs may be."""
        return _tags(super().tags(step), self.operator)


def _tags(tags: Mapping[str, str], operator: str) -> dict[str, str]:
    # Another orchestrator has no flow run.
    ours = {names.TAG_STEP_OPERATOR: names.modal_tag(operator)}
    return {name: value for name, value in {**tags, **ours}.items() if value}


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


def shared_plan(
    snapshot: PipelineSnapshotResponse,
    component: ModalPrefectStepOperatorConfig,
    component_name: str,
    image: Callable[[str], str | None],
) -> Plan | None:
    """The plan of those steps of a static pipeline that may share sandboxes; None if no two of them may.

    The ``upstream`` of each are all others of them that have ended when it begins. ``image`` tells that of a step.
    Raises ``InvalidSettings``.
    """
    found: list[StepPlan] = []
    idle_timeout = 0
    for name, step in snapshot.step_configurations.items():
        config = step.config
        if config.command is not None or not config.uses_step_operator(component_name):
            continue
        wished = wishes_of(name, config, component, component_name)
        if wished.settings.warm:
            # As if ZenML might have each of them in its cache: none of their sandboxes is started before it is called.
            found.append(replace(step_plan(name, config, snapshot, wished, image(name)), caching=True))
            idle_timeout = max(idle_timeout, wished.settings.warm_idle_timeout)
    shared = sharing(plan_around(found, snapshot))
    if not shared:
        return None
    before = _all_upstream(snapshot)
    steps = [
        replace(step, upstream=tuple(name for name in shared if name in before[step.name]))
        for step in found
        if step.name in shared
    ]
    return replace(plan_around(steps, snapshot), warm=True, warm_idle_timeout=idle_timeout)


def _all_upstream(snapshot: PipelineSnapshotResponse) -> dict[str, set[str]]:
    """Of each step all those that it comes after, however far above. ZenML has the steps in such an order."""
    found: dict[str, set[str]] = {}
    for name, step in snapshot.step_configurations.items():
        above = set(step.spec.upstream_steps)
        found[name] = above.union(*(found.get(other, set()) for other in above))
    return found
