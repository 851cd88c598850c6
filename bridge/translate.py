"""A ZenML snapshot and settings become a :class:`~bridge.plan.Plan`. No clock, network or environment.

What has no translation is refused by name; what is merely not used is said in ``Translation.warnings``.
"""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zenml.config.pipeline_configurations import PipelineConfiguration
from zenml.config.retry_config import StepRetryConfig
from zenml.config.step_configurations import Step
from zenml.constants import ORCHESTRATOR_DOCKER_IMAGE_KEY
from zenml.models import PipelineBuildResponse, PipelineSnapshotResponse
from zenml.orchestrators.utils import is_setting_enabled

from bridge import network
from bridge.errors import NotTranslatable
from bridge.layers import Layers, Values
from bridge.plan import FailureMode, Mode, Plan, Resources, RetryPolicy, SandboxSpec, StepPlan, VolumeMount
from bridge.resources import Asked, asked, of_pipeline, pools_not_used, with_gpu
from bridge.settings import ModalPrefectOrchestratorSettings, SandboxSettings

if TYPE_CHECKING:
    from zenml.config.build_configuration import BuildConfiguration

PREFECT_MOST_RETRIES = 50
"""Prefect takes at most 50 retry delays (prefect/tasks.py: ``Can not configure more than 50 retry delays``)."""
PIPELINE_MOST_RETRIES = 1000
"""The same limit for `pipeline` mode, where only the length of the plan speaks for one."""
LONGEST_DELAY = 365 * 86400
"""Seconds; a longer wait is a slip of the backoff, which multiplies."""

_PLACED = ("cloud", "region", "modal_environment", "secrets", "volumes", *network.FIELDS)
SHARED = ("timeout", "concurrency_limit", *_PLACED)
"""Settings of a sandbox that steps which share one can't have each for itself."""
NOT_DYNAMIC = ("execution_mode", "warm", "warm_idle_timeout")
"""Settings that mean nothing for a dynamic pipeline."""
_TUNING = ("tags", "infrastructure_retries", "capacity_timeout", "stream_logs")
"""The same, but a step loses nothing it relies on if the pipeline's value holds."""
_SAME_IMAGE = "Give the steps the same DockerSettings, or run them with execution_mode='per_step'"


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


@dataclass(frozen=True, slots=True)
class _Read:
    """One step as it was read: its plan, its own settings, and those that hold for it."""

    plan: StepPlan
    own: Values
    settings: ModalPrefectOrchestratorSettings


def translate(
    snapshot: PipelineSnapshotResponse | NewSnapshot,
    *,
    component: Mapping[str, object],
    component_name: str,
    stack_name: str,
) -> Translation:
    """Translate a snapshot.

    Args:
        snapshot: The snapshot. ZenML's models ask the store for what they lack: hydrate it and
            its build before (``snapshot.build.get_metadata()``) where the store mustn't be asked.
        component: The orchestrator's config as a mapping; only declared settings and ``runner`` are read.
        component_name: The orchestrator's name, under which ZenML keeps its settings.
        stack_name: The stack's name.

    Raises ``InvalidSettings`` and its child ``NotTranslatable``.
    """
    configuration = snapshot.pipeline_configuration
    layers = Layers(component, component_name, configuration.settings)
    if snapshot.is_dynamic:
        return _dynamic(snapshot, stack_name, layers, component)
    is_local = component.get("runner") == "process"
    mode = Mode(layers.pipeline.execution_mode)
    reader = _Reader(snapshot, layers, mode, is_local=is_local)
    reader.check_network(layers.pipeline, "the pipeline")
    steps = snapshot.step_configurations
    order = ordered({name: reader.upstream(step) for name, step in steps.items()}, configuration.name)
    read = [reader.read(name, steps[name]) for name in order]
    own = reader.asked("the pipeline", configuration.settings.get("resources"))
    plan, warnings = _planned(snapshot, stack_name, layers.pipeline, own, read)
    return Translation(plan, layers.pipeline, (*reader.warnings, *_stray(layers, component_name), *warnings))


def _stray(layers: Layers, component_name: str) -> tuple[str, ...]:
    return tuple(f"settings[{key!r}]: not used, the orchestrator is {component_name!r}." for key in layers.other_keys)


def _dynamic(
    snapshot: PipelineSnapshotResponse | NewSnapshot,
    stack_name: str,
    layers: Layers,
    component: Mapping[str, object],
) -> Translation:
    """The orchestration of a dynamic pipeline: what its steps ask for is known once they are called."""
    configuration, settings = snapshot.pipeline_configuration, layers.pipeline
    is_local = component.get("runner") == "process"
    reader = _Reader(snapshot, layers, Mode.DYNAMIC, is_local=is_local)
    where = "the pipeline"
    reader.check_network(settings, where)
    own = with_gpu(reader.asked(where, configuration.settings.get("resources")), texts(settings.gpu), where)
    for name, step in snapshot.step_configurations.items():  # those in `depends_on`: the others are known once called
        of_step = layers.of(name, layers.own(name, step))
        if not step.config.step_operator:
            wanted = reader.asked(f"step {name}", step.config.settings.get("resources"))
            with_gpu(wanted, texts(of_step.gpu), f"step {name}")
    built = snapshot.build.images.get(ORCHESTRATOR_DOCKER_IMAGE_KEY) if snapshot.build else None
    image = built.image if built else None
    command = ["dynamic", "--snapshot-id", str(snapshot.id)]
    if settings.max_parallelism is not None:
        command += ["--max-parallelism", str(settings.max_parallelism)]
    plan = Plan(
        pipeline=configuration.name,
        snapshot_id=str(snapshot.id),
        stack=stack_name,
        mode=Mode.DYNAMIC,
        failure_mode=FailureMode(configuration.execution_mode.value),
        steps=(),
        max_parallelism=settings.max_parallelism,
        warm=False,
        orphan_timeout=settings.orphan_timeout,
        create_rate=settings.create_rate,
        sandbox=sandbox_spec(settings, own, image),
        command=tuple(command),
        infrastructure_retries=settings.infrastructure_retries,
        concurrency_limit=settings.concurrency_limit,
        stream_logs=settings.stream_logs,
    )
    unused = [field for field in NOT_DYNAMIC if field in settings.model_fields_set]
    warnings = tuple(f"{field}: not used, the pipeline is dynamic." for field in unused)
    return Translation(plan, settings, (*reader.warnings, *_stray(layers, layers.name), *warnings))


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
        self._mode = mode
        self._is_local = is_local
        self._built = snapshot.build.images if snapshot.build else {}
        self._specs: dict[tuple[int, Resources, str | None], SandboxSpec] = {}
        self.warnings: list[str] = []

    def read(self, name: str, step: Step) -> _Read:
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
        return _Read(plan, own, settings)

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
        if self._mode is not Mode.DYNAMIC:
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
                f"in {self._mode.value} mode a step is tried again at most {self._most_retries} times",
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


def _planned(
    snapshot: PipelineSnapshotResponse | NewSnapshot,
    stack_name: str,
    settings: ModalPrefectOrchestratorSettings,
    own: Asked,
    read: Sequence[_Read],
) -> tuple[Plan, tuple[str, ...]]:
    """Put the plan together, with the one sandbox of `pipeline` mode."""
    configuration = snapshot.pipeline_configuration
    mode = Mode(settings.execution_mode)
    sandbox = SandboxSpec()
    command: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    if mode is Mode.PIPELINE:
        image = _one_image(read, configuration.steps_to_skip)
        resources, larger = _shared_resources(own, settings, read)
        warnings = (*_not_shared(read, settings), *larger)
        sandbox = sandbox_spec(settings, resources, image)
        command = _pipeline_command(str(snapshot.id), settings.max_parallelism, resources)
    plan = Plan(
        pipeline=configuration.name,
        snapshot_id=str(snapshot.id),
        stack=stack_name,
        mode=mode,
        failure_mode=FailureMode(configuration.execution_mode.value),
        steps=tuple(step.plan for step in read),
        max_parallelism=settings.max_parallelism,
        warm=settings.warm,
        warm_idle_timeout=settings.warm_idle_timeout,
        orphan_timeout=settings.orphan_timeout,
        create_rate=settings.create_rate,
        sandbox=sandbox,
        command=command,
        infrastructure_retries=settings.infrastructure_retries,
        concurrency_limit=settings.concurrency_limit,
        stream_logs=settings.stream_logs,
    )
    return plan, warnings


def _shared_resources(
    own: Asked, settings: ModalPrefectOrchestratorSettings, read: Sequence[_Read]
) -> tuple[Resources, tuple[str, ...]]:
    in_it = [step.plan for step in read if not step.plan.step_operator]
    if not in_it:  # what the pipeline asks for is meant for the machines of its step operators
        return Resources(), ()
    return of_pipeline(own, texts(settings.gpu), [(plan.name, plan.sandbox.resources) for plan in in_it])


def _pipeline_command(snapshot_id: str, most: int | None, resources: Resources) -> tuple[str, ...]:
    command = ["pipeline", "--snapshot-id", snapshot_id]
    if most is not None:
        command += ["--max-parallelism", str(most)]
    if resources.cpu is not None:
        command += ["--cpu", str(resources.cpu)]
    if resources.memory is not None:
        command += ["--memory", str(resources.memory)]
    if resources.gpu is not None:
        command += ["--gpus", str(resources.gpu.count)]
    return tuple(command)


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


def _one_image(read: Sequence[_Read], skipped: Collection[str]) -> str | None:
    """The image that all steps have. Raises ``NotTranslatable`` if they have more than one."""
    plans = [step.plan for step in read]
    # A step operator brings an image of its own; none is built for what a replay skips.
    in_it = [plan for plan in plans if not plan.step_operator and plan.name not in skipped]
    if not in_it:
        return next((plan.sandbox.image for plan in plans if plan.sandbox.image), None)
    examples = {plan.sandbox.image: plan.name for plan in reversed(in_it)}
    if len(examples) > 1:
        raise NotTranslatable(
            "image",
            {f"step {name}": image for image, name in sorted(examples.items(), key=str)},
            "in pipeline mode all steps share one sandbox, which has one image",
            _SAME_IMAGE,
        )
    return next(iter(examples))


def refuse_images(plan: Plan, builds: Sequence[BuildConfiguration], unused: Collection[str] = ()) -> None:
    """Raise ``NotTranslatable`` if the one sandbox of `pipeline` mode would need several of these images.

    ``unused`` are fields of ``DockerSettings`` that whoever builds them doesn't use.
    """
    if plan.mode is not Mode.PIPELINE:
        return
    settings = {build.step_name: vars(build.settings) for build in builds}  # see `_Reader.read`
    in_it = [step.name for step in plan.steps if not step.step_operator]
    for name in in_it[1:]:
        one, other = (settings[step] if step in settings else settings[None] for step in (in_it[0], name))
        if differing := _differing(one, other, unused):
            raise NotTranslatable(
                f"DockerSettings of step {name}",
                differing,
                f"step {in_it[0]} has others, and in pipeline mode all steps share one sandbox, which has one image",
                _SAME_IMAGE,
            )


def _differing(one: Mapping[str, object], other: Mapping[str, object], unused: Collection[str]) -> list[str]:
    """The fields in which two ``DockerSettings`` differ, if those make different images."""
    without_build = one["skip_build"] and other["skip_build"]
    fields = {"parent_image"} if without_build else one.keys() - {"prevent_build_reuse", *unused}
    return sorted(field for field in fields if one[field] != other[field])


def _not_shared(read: Sequence[_Read], settings: ModalPrefectOrchestratorSettings) -> tuple[str, ...]:
    """Refuse what steps that share a sandbox can't have each for itself; warn of what they needn't have."""
    warnings = []
    for step in read:
        for field in step.own:
            value, pipeline_value = getattr(step.settings, field), getattr(settings, field)
            if value == pipeline_value:
                continue
            where = f"{field} of step {step.plan.name}"
            if field in SHARED:
                raise NotTranslatable(
                    where,
                    value,
                    "in pipeline mode all steps share one sandbox",
                    f"Set {field} on the pipeline, or run the steps with execution_mode='per_step'",
                )
            if field in _TUNING:
                warnings.append(f"{where}={value!r}: not used, in pipeline mode that of the pipeline holds.")
    return tuple(warnings)


def texts(value: str | list[str] | None) -> tuple[str, ...]:
    """The texts of a setting that may be one or several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
