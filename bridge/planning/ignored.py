"""What a user has said that means nothing where sandboxes are processes on this machine: the one list of it.

Pure. Who says it, and when: :meth:`bridge.orchestrator.ModalPrefectOrchestrator.announce` at submission,
:mod:`bridge.dynamic_pipelines.isolated_steps` and :mod:`bridge.step_operator` of steps that are known once they are
called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from zenml.config import DockerSettings
from zenml.config.constants import DOCKER_SETTINGS_KEY
from zenml.models import PipelineSnapshotResponse

from bridge.plan import Mode, Plan, SandboxSpec
from bridge.settings import ModalPrefectOrchestratorSettings, RunnerConfig

OF_COMPONENT = tuple(field for field in RunnerConfig.model_fields if field != "runner")
_SAYS_NOTHING: tuple[object, ...] = (None, (), [], {}, "", False)
_SHARED = ("ResourceSettings.cpu_count", "ResourceSettings.memory", "ResourceSettings.gpu_count")
"""In `pipeline` mode they still say which steps run side by side (:mod:`bridge.host.admission`)."""


def of_run(snapshot: PipelineSnapshotResponse, plan: Plan, config: RunnerConfig) -> tuple[str, ...]:
    """What is to be said of a run, a line for each field; of a dynamic pipeline, of what is known by now."""
    if config.runner != "process":
        return ()
    specs = dict.fromkeys((plan.sandbox, *(step.sandbox for step in plan.steps)))
    fields = [*_of_component(config), *(field for spec in specs for field in _of_spec(spec))]
    if plan.create_rate != _default("create_rate"):
        fields.append("create_rate")
    operated = {step.name for step in plan.steps if step.step_operator}
    if not plan.steps or len(operated) < len(plan.steps):  # the images of step operators are made of it as well
        fields += _of_docker(snapshot.pipeline_configuration.settings)
    for name, step in snapshot.step_configurations.items():
        if name not in operated:
            fields += _of_docker(step.step_config_overrides.settings)
    return _lines(fields, shared=plan.mode is Mode.PIPELINE)


def of_step(spec: SandboxSpec, settings: Mapping[str, object]) -> tuple[str, ...]:
    """The same of one step that is carried out by itself. ``settings`` are all that ZenML has of it."""
    return _lines([*_of_spec(spec), *_of_docker(settings)])


def of_component(config: RunnerConfig) -> tuple[str, ...]:
    """The same of the component itself."""
    return _lines(_of_component(config)) if config.runner == "process" else ()


def _lines(fields: Iterable[str], *, shared: bool = False) -> tuple[str, ...]:
    return tuple(_line(field, shared=shared) for field in dict.fromkeys(fields))


def _line(field: str, *, shared: bool) -> str:
    if shared and field in _SHARED:
        only = "it only says which run side by side"
        return f"{field}: limits nothing, runner='process' runs the steps on this machine; {only}."
    return f"{field}: not used, runner='process' runs the steps on this machine."


def _of_component(config: RunnerConfig) -> Iterator[str]:
    values = vars(config)  # as they were written: to read a token that is a reference asks ZenML's server for it
    return (field for field in OF_COMPONENT if values.get(field) not in _SAYS_NOTHING)


def _of_spec(spec: SandboxSpec) -> Iterator[str]:
    gpu = spec.resources.gpu
    asked = {
        "ResourceSettings.cpu_count": spec.resources.cpu,
        "ResourceSettings.memory": spec.resources.memory,
        "gpu": gpu,
        "ResourceSettings.gpu_count": gpu if gpu is not None and gpu.count > 1 else None,
        "capacity_timeout": spec.capacity_timeout != _default("capacity_timeout"),
        "cloud": spec.cloud,
        "region": spec.region,
        "modal_environment": spec.modal_environment,
        "secrets": spec.secrets,
        "volumes": spec.volumes,
        "block_network": spec.block_network,
        "outbound_cidr_allowlist": spec.outbound_cidrs,
        "outbound_domain_allowlist": spec.outbound_domains,
    }
    return (field for field, value in asked.items() if value not in _SAYS_NOTHING)


def _default(setting: str) -> object:
    return ModalPrefectOrchestratorSettings.model_fields[setting].default


def _of_docker(settings: Mapping[str, object]) -> Iterator[str]:
    given = settings.get(DOCKER_SETTINGS_KEY)
    values: dict[str, object] = dict(given) if given is not None else {}  # type: ignore[call-overload]
    for field, value in values.items():
        known = DockerSettings.model_fields.get(field)
        default = known.get_default(call_default_factory=True) if known is not None else None
        if value not in _SAYS_NOTHING and value != default:
            yield f"DockerSettings.{field}"
