"""What is to be done: a pipeline run as frozen, printable data. Standard library only.

:mod:`bridge.planning.translate` makes a :class:`Plan` from a ZenML snapshot, :mod:`bridge.flow_run.carrying_out`
carries it out. A plan needs no SDK, network, clock or environment to be made, read or compared, and never holds a
token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

RunnerKind = Literal["modal", "process"]
"""Where the sandboxes of a stack's component run: on Modal, or as processes of this machine."""


class Mode(str, Enum):
    """Where the steps of a run run."""

    PIPELINE = "pipeline"
    """The whole pipeline in one sandbox."""
    PER_STEP = "per_step"
    """Each step in a sandbox."""
    DYNAMIC = "dynamic"
    """A dynamic pipeline: its function, with the inline steps, in one sandbox, each isolated step in one of its own."""

    @property
    def in_one_sandbox(self) -> bool:
        """Whether the run has one sandbox that is there from its beginning to its end."""
        return self is not Mode.PER_STEP


class FailureMode(str, Enum):
    """What a failed step does to the others: ZenML's ``ExecutionMode``."""

    FAIL_FAST = "fail_fast"
    """Running steps are killed, no other step starts."""
    STOP_ON_FAILURE = "stop_on_failure"
    """Running steps end, no other step starts."""
    CONTINUE_ON_FAILURE = "continue_on_failure"
    """Only the steps downstream of the failure don't start."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """GPUs of one sandbox: ``types`` are tried in order, ``count`` is at least 1."""

    types: tuple[str, ...]
    count: int = 1

    def __str__(self) -> str:
        return f"{self.count} x {' or '.join(self.types)}"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a step asks for; None leaves it to the runner.

    ``cpu`` is in cores, ``memory`` in MiB (rounded up).
    """

    cpu: float | None = None
    memory: int | None = None
    gpu: Gpu | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.cpu:g} cpu" if self.cpu is not None else "",
            f"{self.memory} MiB" if self.memory is not None else "",
            str(self.gpu) if self.gpu else "",
        ]
        return ", ".join(part for part in parts if part) or "default"


READ_ONLY = ":ro"
"""What follows a volume's name where it is mounted read-only, as in Docker's ``--volume``."""


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """The Modal Volume ``name`` at ``path`` of a sandbox."""

    path: str
    name: str
    read_only: bool = False

    @classmethod
    def of(cls, path: str, text: str) -> VolumeMount:
        """Read what the setting ``volumes`` has for a path: a name, or one with ``:ro`` behind it."""
        name = text.removesuffix(READ_ONLY)
        return cls(path, name, read_only=name != text)

    def __str__(self) -> str:
        return f"{self.name} at {self.path}{', read-only' if self.read_only else ''}"


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox is made of. Two steps with equal specs could share one.

    ``timeout``, ``capacity_timeout`` are in seconds. ``secrets`` are names of Modal Secrets, ``tags`` extra sandbox
    tags. ``image`` is None where the runner has no images (``process``). Without ``outbound_cidrs`` and
    ``outbound_domains`` it may reach anything, unless ``block_network`` says that it reaches nothing.
    """

    image: str | None = None
    resources: Resources = Resources()
    timeout: int = 86400
    capacity_timeout: int = 300
    cloud: str | None = None
    region: tuple[str, ...] = ()
    modal_environment: str | None = None
    secrets: tuple[str, ...] = ()
    volumes: tuple[VolumeMount, ...] = ()
    block_network: bool = False
    outbound_cidrs: tuple[str, ...] = ()
    outbound_domains: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The retries of a step: the seconds to wait before each, so its length is their number."""

    delays: tuple[float, ...] = ()

    @property
    def retries(self) -> int:
        """How often the step may be tried again after its first attempt."""
        return len(self.delays)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. ``command`` are the arguments of the program in the sandbox (:mod:`bridge.host`)."""

    name: str
    upstream: tuple[str, ...]
    command: tuple[str, ...]
    sandbox: SandboxSpec
    retry: RetryPolicy = RetryPolicy()
    step_operator: bool | str = False
    """True or the operator's name where a step operator runs the step: then its sandbox only waits."""
    caching: bool = True
    """Whether ZenML may answer this step from its cache."""
    concurrency_limit: str | None = None
    stream_logs: bool = True
    infrastructure_retries: int = 3
    reports: bool = True
    """Whether what runs in the sandbox tells ZenML how it ended; a command step's command doesn't."""

    def __str__(self) -> str:
        after = f" after {', '.join(self.upstream)}" if self.upstream else ""
        retries = self.retry.retries
        again = f", {retries} {'retry' if retries == 1 else 'retries'}" if retries else ""
        return f"{self.name}{after} [{self.sandbox.resources}{again}]"


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline run. ``steps`` are in ZenML's order, upstream before downstream.

    In ``dynamic`` mode there are none: which steps there are is seen while the run goes on.
    """

    pipeline: str
    snapshot_id: str
    stack: str
    mode: Mode
    failure_mode: FailureMode
    steps: tuple[StepPlan, ...]
    max_parallelism: int | None = None
    warm: bool = True
    warm_idle_timeout: int = 60
    orphan_timeout: int = 1800
    create_rate: float = 4.0
    sandbox: SandboxSpec = SandboxSpec()
    """The one sandbox of ``pipeline`` mode; in ``dynamic`` mode the one of the orchestration."""
    command: tuple[str, ...] = ()
    """The command in it."""
    infrastructure_retries: int = 3
    concurrency_limit: str | None = None
    """Of which the one sandbox of ``pipeline`` mode holds a slot; in ``dynamic`` mode each isolated step, not it."""
    stream_logs: bool = True
    _index: dict[str, StepPlan] = field(default_factory=dict, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        self._index.update((step.name, step) for step in self.steps)

    def step(self, name: str) -> StepPlan:
        """Return the step of that name. Raises ``KeyError`` if there is none."""
        return self._index[name]

    @property
    def upstream(self) -> dict[str, tuple[str, ...]]:
        """The graph: the upstream steps of each step."""
        return {step.name: step.upstream for step in self.steps}

    @property
    def sandbox_specs(self) -> tuple[SandboxSpec, ...]:
        """What its sandboxes are made of, each once; of a dynamic pipeline that of the orchestration alone."""
        if self.mode.in_one_sandbox:
            return (self.sandbox,)
        return tuple(dict.fromkeys(step.sandbox for step in self.steps))

    @property
    def modal_environments(self) -> tuple[str | None, ...]:
        """The Modal environments that its sandboxes are in, each once; None is that of the profile."""
        return tuple(dict.fromkeys(spec.modal_environment for spec in self.sandbox_specs))

    @property
    def most_sandboxes(self) -> int:
        """How many sandboxes ``pipeline`` mode can need one after the other, if each of them dies under a step."""
        deaths = sum(step.retry.retries for step in self.steps)
        if self.failure_mode is FailureMode.CONTINUE_ON_FAILURE:
            deaths += len(self.steps)
        return 1 + self.infrastructure_retries + deaths

    def __str__(self) -> str:
        most = f", at most {self.max_parallelism} at once" if self.max_parallelism else ""
        steps = f"{len(self.steps)} steps, " if self.mode is not Mode.DYNAMIC else ""
        head = f"{self.pipeline}: {steps}{self.mode.value}, {self.failure_mode.value}{most}"
        if self.mode is Mode.DYNAMIC:
            return f"{head} [{self.sandbox.resources}]; its steps are known as it runs"
        return "\n".join([head, *(f"  {step}" for step in self.steps)])
