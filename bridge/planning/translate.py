"""A ZenML snapshot and settings become a :class:`~bridge.plan.Plan`. No clock, network or environment.

What has no translation is refused by name; what is merely not used is said in ``Translation.warnings``.
"""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zenml.config.pipeline_configurations import PipelineConfiguration
from zenml.config.retry_config import StepRetryConfig
from zenml.config.step_configurations import Step
from zenml.constants import ORCHESTRATOR_DOCKER_IMAGE_KEY
from zenml.models import PipelineBuildResponse, PipelineSnapshotResponse
from zenml.orchestrators.utils import is_setting_enabled

from bridge.errors import NotTranslatable
from bridge.plan import FailureMode, Mode, Plan, Resources, RetryPolicy, SandboxSpec, StepPlan, VolumeMount
from bridge.planning import network
from bridge.planning.layers import ComponentSettings, Layers
from bridge.planning.one_sandbox import ReadStep, not_shared, one_image, shared_resources
from bridge.planning.resources import Asked, asked, pools_not_used, with_gpu
from bridge.settings import ModalPrefectOrchestratorSettings, SandboxSettings

PREFECT_MOST_RETRIES = 50
"""Prefect takes at most 50 retry delays (prefect/tasks.py: ``Can not configure more than 50 retry delays``)."""
PIPELINE_MOST_RETRIES = 1000
"""The same limit for `pipeline` mode, where only the length of the plan speaks for one."""
LONGEST_DELAY = 365 * 86400
"""Seconds; a longer wait is a slip of the backoff, which multiplies."""

NOT_DYNAMIC = ("execution_mode", "warm", "warm_idle_timeout")
"""Settings that mean nothing for a dynamic pipeline."""


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What of a snapshot can be translated before ZenML has stored it and built its images."""

    is_dynamic: bool
    pipeline_configuration: PipelineConfiguration
    step_configurations: Mapping[str, Step]
    id: str = "not stored yet"
    build: None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """A plan, the run's own settings, and what of the user's input the plan doesn't use."""

    plan: Plan
    settings: ModalPrefectOrchestratorSettings
    warnings: tuple[str, ...] = ()


def translate(
    snapshot: PipelineSnapshotResponse | NewSnapshot,
    *,
    component: ComponentSettings,
    component_name: str,
    stack_name: str,
) -> Translation:
    """Translate a snapshot.

    Args:
        snapshot: The snapshot. ZenML's models ask the store for what they lack: hydrate it and
            its build before (``snapshot.build.get_metadata()``) where the store mustn't be asked.
        component: What the orchestrator's config says; only declared settings are read.
        component_name: The orchestrator's name, under which ZenML keeps its settings.
        stack_name: The stack's name.

    Raises ``InvalidSettings`` and its child ``NotTranslatable``.
    """
    configuration = snapshot.pipeline_configuration
    layers = Layers(component, component_name, configuration.settings)
    settings = layers.pipeline
    mode = Mode.DYNAMIC if snapshot.is_dynamic else Mode(settings.execution_mode)
    reader = _Reader(snapshot, layers, mode, is_local=component.runner == "process")
    reader.check_network(settings, "the pipeline")
    planned = _dynamic if snapshot.is_dynamic else _static
    plan, warnings = planned(snapshot, stack_name, layers, reader)
    unread = (f"settings[{key!r}]: not used, the orchestrator is {component_name!r}." for key in layers.other_keys)
    return Translation(plan, settings, (*reader.warnings, *unread, *warnings))


def _static(
    snapshot: PipelineSnapshotResponse | NewSnapshot, stack_name: str, layers: Layers, reader: _Reader
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a pipeline whose steps are known, with the one sandbox of `pipeline` mode; and its warnings."""
    configuration, settings, steps = snapshot.pipeline_configuration, layers.pipeline, snapshot.step_configurations
    order = ordered({name: reader.upstream(step) for name, step in steps.items()}, configuration.name)
    read = [reader.read(name, steps[name]) for name in order]
    own = reader.asked("the pipeline", configuration.settings.get("resources"))
    sandbox = SandboxSpec()
    command: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    if reader.mode is Mode.PIPELINE:
        image = one_image(read, configuration.steps_to_skip)
        resources, larger = shared_resources(own, texts(settings.gpu), read)
        warnings = (*not_shared(read, settings), *larger)
        sandbox = sandbox_spec(settings, resources, image)
        command = (*_command("pipeline", snapshot, settings), *_machine(resources))
    plan = _plan(snapshot, stack_name, settings, reader.mode, sandbox, command, [step.plan for step in read])
    return plan, warnings


def _dynamic(
    snapshot: PipelineSnapshotResponse | NewSnapshot, stack_name: str, layers: Layers, reader: _Reader
) -> tuple[Plan, tuple[str, ...]]:
    """The orchestration of a dynamic pipeline: what its steps ask for is known once they are called."""
    configuration, settings, where = snapshot.pipeline_configuration, layers.pipeline, "the pipeline"
    own = with_gpu(reader.asked(where, configuration.settings.get("resources")), texts(settings.gpu), where)
    for name, step in snapshot.step_configurations.items():  # those in `depends_on`: the others are known once called
        of_step = layers.of(name, layers.own(name, step))
        if not step.config.step_operator:
            wanted = reader.asked(f"step {name}", step.config.settings.get("resources"))
            with_gpu(wanted, texts(of_step.gpu), f"step {name}")
    built = snapshot.build.images.get(ORCHESTRATOR_DOCKER_IMAGE_KEY) if snapshot.build else None
    sandbox = sandbox_spec(settings, own, built.image if built else None)
    plan = _plan(snapshot, stack_name, settings, reader.mode, sandbox, _command("dynamic", snapshot, settings))
    unused = [field for field in NOT_DYNAMIC if field in settings.model_fields_set]
    return plan, tuple(f"{field}: not used, the pipeline is dynamic." for field in unused)


def _plan(
    snapshot: PipelineSnapshotResponse | NewSnapshot,
    stack_name: str,
    settings: ModalPrefectOrchestratorSettings,
    mode: Mode,
    sandbox: SandboxSpec,
    command: tuple[str, ...],
    steps: Sequence[StepPlan] = (),
) -> Plan:
    configuration = snapshot.pipeline_configuration
    return Plan(
        pipeline=configuration.name,
        snapshot_id=str(snapshot.id),
        stack=stack_name,
        mode=mode,
        failure_mode=FailureMode(configuration.execution_mode.value),
        steps=tuple(steps),
        max_parallelism=settings.max_parallelism,
        warm=settings.warm and mode is not Mode.DYNAMIC,
        warm_idle_timeout=settings.warm_idle_timeout,
        orphan_timeout=settings.orphan_timeout,
        create_rate=settings.create_rate,
        sandbox=sandbox,
        command=command,
        infrastructure_retries=settings.infrastructure_retries,
        concurrency_limit=settings.concurrency_limit,
        stream_logs=settings.stream_logs,
    )


def _command(
    program: str, snapshot: PipelineSnapshotResponse | NewSnapshot, settings: ModalPrefectOrchestratorSettings
) -> tuple[str, ...]:
    """The command in the one sandbox of a run."""
    command = (program, "--snapshot-id", str(snapshot.id))
    most = settings.max_parallelism
    return command if most is None else (*command, "--max-parallelism", str(most))


def _machine(resources: Resources) -> tuple[str, ...]:
    """What the command is told of the machine that it shares out among the steps."""
    told: list[str] = []
    if resources.cpu is not None:
        told += ["--cpu", str(resources.cpu)]
    if resources.memory is not None:
        told += ["--memory", str(resources.memory)]
    if resources.gpu is not None:
        told += ["--gpus", str(resources.gpu.count)]
    return tuple(told)


def ordered(upstream: Mapping[str, Sequence[str]], pipeline: str) -> list[str]:
    """Return the steps, upstream before downstream, in the given order where that is possible.

    Raises ``NotTranslatable`` for no steps, an upstream step that doesn't exist, and a cycle.
    """
    if not upstream:
        raise NotTranslatable(
            "steps", [], f"the pipeline {pipeline} has no steps", "Call at least one step in the pipeline function"
        )
    seen: set[str] = set()
    in_order = True
    for name, above in upstream.items():
        for other in above:
            if other not in upstream:
                raise NotTranslatable(
                    f"upstream steps of step {name}",
                    list(above),
                    f"there is no step {other}",
                    f"The steps are {', '.join(list(upstream)[:20])}: name one of them",
                )
            in_order = in_order and other in seen
        seen.add(name)
    if in_order:
        return list(upstream)
    try:
        return list(graphlib.TopologicalSorter(upstream).static_order())
    except graphlib.CycleError as error:
        cycle = [str(name) for name in error.args[1]]
        raise NotTranslatable(
            "upstream steps",
            cycle,
            "these steps wait for each other, round in a circle",
            "Take one of their dependencies away",
        ) from error


def retry_delays(retry: StepRetryConfig | None) -> tuple[float, ...]:
    """Return the seconds before each retry: ``delay`` before the first, each next one times ``backoff``.

    That is ZenML's own loop (zenml/execution/step/utils.py): with its default backoff of 0 only the first retry
    waits.
    """
    if retry is None:
        return ()
    delays: list[float] = []
    delay = retry.delay
    for _ in range(retry.max_retries):
        delays.append(float(delay))
        delay = min(delay * retry.backoff, LONGEST_DELAY + 1)  # else it grows beyond what a float holds
    return tuple(delays)


class _Reader:
    """Reads the steps of one snapshot; equal settings and resources are worked out once."""

    def __init__(
        self,
        snapshot: PipelineSnapshotResponse | NewSnapshot,
        layers: Layers,
        mode: Mode,
        *,
        is_local: bool,
    ) -> None:
        configuration = snapshot.pipeline_configuration
        self._snapshot_id = str(snapshot.id)
        self._cache = configuration.enable_cache
        # Those that a replay skips ZenML takes out of a snapshot for its build, but leaves their names in others.
        self._left_out = configuration.steps_to_skip - snapshot.step_configurations.keys()
        self._layers = layers
        self._most_retries = PREFECT_MOST_RETRIES if mode is Mode.PER_STEP else PIPELINE_MOST_RETRIES
        self.mode = mode
        self._is_local = is_local
        self._built = snapshot.build.images if snapshot.build else {}
        self._specs: dict[tuple[int, Resources, str | None], SandboxSpec] = {}
        self.warnings: list[str] = []

    def read(self, name: str, step: Step) -> ReadStep:
        config = step.config
        if name == "--":
            raise NotTranslatable(
                "name of a step",
                name,
                "on a command line these two dashes are no name but the end of all options",
                "Call the step something else",
            )
        if config.command is not None and not config.step_operator:
            raise NotTranslatable(
                f"command of step {name}",
                config.command,
                "this orchestrator runs commands through a step operator only",
                "Give the step a step operator, or call the command from a Python step",
            )
        own = self._layers.own(name, step)
        settings = self._layers.of(name, own)
        self.check_network(settings, f"step {name}")
        values = vars(settings)  # ZenML's attribute access looks each value over for references to secrets: slow
        # A step operator brings the machine: what the step asks for is meant for that one, not for the sandbox
        # that waits for it.
        if config.step_operator:
            resources = Resources()
        else:
            wanted = self.asked(f"step {name}", config.settings.get("resources"))
            resources = with_gpu(wanted, texts(values["gpu"]), f"step {name}")
        plan = StepPlan(
            name=name,
            upstream=self.upstream(step),
            command=("step", "--snapshot-id", self._snapshot_id, "--step", name),
            sandbox=self._spec(settings, resources, self._image(name)),
            retry=self._retry(name, config.retry),
            step_operator=config.step_operator or False,
            caching=is_setting_enabled(config.enable_cache, self._cache),
            concurrency_limit=values["concurrency_limit"],
            stream_logs=values["stream_logs"],
            infrastructure_retries=values["infrastructure_retries"],
        )
        return ReadStep(plan, own, settings)

    def upstream(self, step: Step) -> tuple[str, ...]:
        """The steps that a step waits for, each once."""
        return tuple(dict.fromkeys(name for name in step.spec.upstream_steps if name not in self._left_out))

    def check_network(self, settings: SandboxSettings, where: str) -> None:
        """Refuse what a sandbox can't have; local processes have this machine's network. Raises ``NotTranslatable``."""
        if not self._is_local:
            network.check_network(settings, where, needs_zenml=True)

    def asked(self, where: str, resources: Mapping[str, object] | object | None) -> Asked:
        """What ``resources``, a ``ResourceSettings`` or None, ask for."""
        if resources is None:
            return Asked()
        values: dict[str, object] = dict(resources)  # type: ignore[call-overload]
        if self.mode is not Mode.DYNAMIC:
            self.warnings += pools_not_used(values, where)
        return asked(values, where)

    def _image(self, name: str) -> str | None:
        key = ORCHESTRATOR_DOCKER_IMAGE_KEY
        item = self._built.get(PipelineBuildResponse.get_image_key(key, name)) or self._built.get(key)
        return item.image if item else None

    def _spec(self, settings: ModalPrefectOrchestratorSettings, resources: Resources, image: str | None) -> SandboxSpec:
        key = (id(settings), resources, image)
        if key not in self._specs:
            self._specs[key] = sandbox_spec(settings, resources, image)
        return self._specs[key]

    def _retry(self, name: str, retry: StepRetryConfig | None) -> RetryPolicy:
        if retry is None:
            return _NO_RETRY
        if retry.max_retries > self._most_retries:
            raise NotTranslatable(
                f"retry.max_retries of step {name}",
                retry.max_retries,
                f"in {self.mode.value} mode a step is tried again at most {self._most_retries} times",
                f"Write StepRetryConfig(max_retries={self._most_retries}) or less",
            )
        delays = retry_delays(retry)
        if delays and max(delays) > LONGEST_DELAY:
            raise NotTranslatable(
                f"retry of step {name}",
                {"delay": retry.delay, "backoff": retry.backoff, "max_retries": retry.max_retries},
                "its last retry would wait for more than a year",
                "Lower the delay, the backoff or max_retries: each delay is the one before times the backoff",
            )
        return RetryPolicy(delays)


_NO_RETRY = RetryPolicy()


def sandbox_spec(settings: SandboxSettings, resources: Resources, image: str | None) -> SandboxSpec:
    """The sandbox of a step with these settings and resources."""
    values = vars(settings)
    return SandboxSpec(
        image=image,
        resources=resources,
        timeout=values["timeout"],
        capacity_timeout=values["capacity_timeout"],
        cloud=values["cloud"],
        region=texts(values["region"]),
        modal_environment=values["modal_environment"],
        secrets=tuple(values["secrets"]),
        volumes=tuple(VolumeMount.of(path, text) for path, text in sorted(values["volumes"].items())),
        block_network=values["block_network"],
        outbound_cidrs=tuple(sorted(values["outbound_cidr_allowlist"])),
        outbound_domains=tuple(sorted(values["outbound_domain_allowlist"])),
        tags=tuple(sorted(values["tags"].items())),
    )


def texts(value: str | list[str] | None) -> tuple[str, ...]:
    """The texts of a setting that may be one or several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
