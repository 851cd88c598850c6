"""Settings and configs of both components: what a user may ask for, checked before anything starts.

A setting can stand on the component, on a pipeline and, where it makes sense, on a step; the nearer one
wins and None never overrides. A wrong value raises :class:`~bridge.errors.InvalidSettings`, which names
field, value and fix. Imports neither Modal nor Prefect: ZenML loads this module wherever a stack is looked
at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from zenml.config.base_settings import BaseSettings
from zenml.orchestrators import BaseOrchestratorConfig
from zenml.step_operators import BaseStepOperatorConfig
from zenml.utils.secret_utils import SecretField

from bridge.errors import InvalidSettings
from bridge.plan import RunnerKind
from bridge.planning.checks import checked, decoded, refuse_half_a_token, translated

if TYPE_CHECKING:
    from typing_extensions import Self

RUN_LEVEL = frozenset(
    {
        "execution_mode",
        "synchronous",
        "max_parallelism",
        "warm",
        "warm_idle_timeout",
        "orphan_timeout",
        "create_rate",
        "work_queue",
        "job_variables",
    }
)
"""Settings that belong to a run as a whole: on a step they are refused by name."""


_OF_A_COMPONENT = ConfigDict(extra="ignore", hide_input_in_errors=True, frozen=True)
# Each config class says it for itself: pydantic lets the settings, a later base, override what an earlier one says.


class RunnerConfig(BaseModel):
    """Which machines a component uses, and the account on them; what the configs of both components have in common."""

    COMPONENT_ONLY: ClassVar[frozenset[str]] = frozenset()

    if not TYPE_CHECKING:

        def __getattribute__(self, name: str) -> object:
            """Name the field that refers to a secret which ZenML hasn't: its own answer is a plain KeyError."""
            try:
                return super().__getattribute__(name)
            except KeyError as error:
                written, fix = self.__dict__[name], "Make it with `zenml secret create`, or mend the reference"
                raise InvalidSettings(name, written, str(error.args[0]), fix) from error

    runner: RunnerKind = Field(
        default="modal",
        description="`modal`, the default, or `process`: sandboxes are processes on this machine, nothing "
        "leaves it and no account is needed. Choose `process` for a laptop and for tests.",
    )
    token_id: str | None = SecretField(
        default=None,
        repr=False,
        description="Id of a Modal token, best as a reference to a ZenML secret. Set it with "
        "`token_secret` or not at all: then Modal's own configuration counts "
        "(`MODAL_TOKEN_ID`, `~/.modal.toml`).",
    )
    token_secret: str | None = SecretField(
        default=None,
        repr=False,
        description="Secret of the Modal token `token_id`, best as a reference to a ZenML secret.",
    )
    image_source: Literal["registry", "modal"] | None = Field(
        default=None,
        description="Where the image comes from: `registry` (ZenML builds and pushes it) or `modal` "
        "(Modal builds it from `DockerSettings`). None, the default, is the registry if the "
        "stack has one, else Modal.",
    )
    build_secrets: list[str] = Field(
        default_factory=list,
        description="Names of Modal Secrets whose values are variables of the commands that install "
        "packages while Modal builds an image, such as `PIP_EXTRA_INDEX_URL` or `UV_INDEX_URL` of "
        "a private index. They are in no layer of the image, and no step sees them.",
    )

    model_config = _OF_A_COMPONENT

    if not TYPE_CHECKING:

        def __init__(self, **values: object) -> None:
            """Check and keep ``values``. Raises ``InvalidSettings``."""
            super().__init__(**values)
            refuse_half_a_token(self)

    @property
    def is_remote(self) -> bool:
        """Whether ZenML's store must be reachable from elsewhere. ZenML refuses a local store if so."""
        return self.runner == "modal"

    @property
    def is_local(self) -> bool:
        """Whether it needs what is on this machine."""
        return self.runner == "process"


class SandboxSettings(BaseSettings):
    """What both components let a user say about the sandbox of a step."""

    COMPONENT_ONLY: ClassVar[frozenset[str]] = frozenset(RunnerConfig.model_fields)
    """What the component's config says beside its settings."""

    gpu: str | list[str] | None = Field(
        default=None,
        description="Modal GPU type, such as `A100`, `H100` or `T4`, or a list of types that are tried in "
        "order. The count is `ResourceSettings(gpu_count=...)`: none means 1, 0 means no GPU, "
        "which is how a step opts out of a type that its pipeline asks for. None, the "
        "default, means no GPU.",
    )
    cloud: str | None = Field(
        default=None,
        description="Cloud provider in which sandboxes run, such as `aws`, `gcp` or `oci`. None, the "
        "default, leaves it to Modal, which finds capacity faster.",
    )
    region: str | list[str] | None = Field(
        default=None,
        description="Region in which sandboxes run, such as `us-east` or `eu`, or a list of them. Set it "
        "to stay near your data or within a jurisdiction; Modal charges more for it. None, "
        "the default, is anywhere.",
    )
    modal_environment: str | None = Field(
        default=None,
        description="Modal environment of apps, secrets and volumes. None, the default, is the "
        "environment of the Modal profile.",
    )
    timeout: int = Field(
        default=86400,
        ge=1,
        le=86400,
        description="Seconds that a step (in `pipeline` mode: the pipeline) may take, 1 to 86400. The "
        "default, 86400, is Modal's own limit of 24 hours. Lower it to stop paying for a step "
        "that hangs.",
    )
    infrastructure_retries: int = Field(
        default=3,
        ge=0,
        description="Fresh sandboxes for a step whose sandbox was lost to an eviction or a failure on "
        "Modal's side. They aren't counted as the step's own retries. 0 gives up at the first "
        "loss. Default 3.",
    )
    capacity_timeout: int = Field(
        default=300,
        ge=1,
        description="Seconds to wait for capacity, for each GPU type of `gpu`, before the next one is "
        "tried. Default 300. Raise it for scarce types without a fallback.",
    )
    secrets: list[str] = Field(
        default_factory=list,
        description="Names of Modal Secrets whose values become environment variables of the sandbox. "
        "They must exist in the Modal environment.",
    )
    volumes: dict[str, str] = Field(
        default_factory=dict,
        description="Modal Volumes by mount path: `{'/data': 'my-volume'}`; `'my-volume:ro'` mounts one read-only, "
        "and steps that only read from volumes share warm sandboxes. Paths are absolute; the volumes must exist in "
        "the Modal environment.",
    )
    block_network: bool = Field(
        default=False,
        description="Whether the sandbox has no network at all. For command steps only: the program of any "
        "other step talks to ZenML. Default False.",
    )
    outbound_cidr_allowlist: list[str] = Field(
        default_factory=list,
        description="Networks that the sandbox may reach, as in `['10.0.0.0/8']`; with them, or with "
        "`outbound_domain_allowlist`, it connects to nothing else; names of any host are still looked up. "
        "ZenML's server and the artifact store must be among them, or the step can't report. Empty, the "
        "default: no limit.",
    )
    outbound_domain_allowlist: list[str] = Field(
        default_factory=list,
        description="Domains that the sandbox may reach by TLS on port 443, and by nothing else, as in "
        "`['zenml.example.com', '*.amazonaws.com']`, beside the networks of `outbound_cidr_allowlist`. Names of two "
        "parts at least, 100 at most, no addresses. Older releases of Modal's SDK don't know it, which is an error. "
        "Empty, the default: no limit.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict,
        description="Extra tags of the sandboxes, for Modal's dashboard and billing. Keys and values hold "
        "ASCII letters, digits and `-_.`, 63 at most; the tags that this package sets itself "
        "can't be replaced.",
    )
    stream_logs: bool = Field(
        default=True,
        description="Whether a sandbox's output appears, while it runs, in the logs of the Prefect task "
        "run (of the step, where a step operator runs it). Turn it off for steps that print "
        "very much.",
    )

    model_config = ConfigDict(hide_input_in_errors=True, frozen=True, extra="allow")

    if not TYPE_CHECKING:  # so that type checkers and editors still see the fields

        def __init__(self, **values: object) -> None:
            """Check and keep ``values``. Raises ``InvalidSettings``, which ZenML hands on as it is, while it
            hides pydantic's ``ValidationError`` behind a message without the reason."""
            values = decoded(type(self), values)
            with translated(type(self), values):
                super().__init__(**values)
            checked(self)

    if not TYPE_CHECKING:

        @classmethod
        def model_validate(cls, obj: object, **options: object) -> Self:
            """Make settings of a mapping. Raises ``InvalidSettings``."""
            with translated(cls, {}):
                return super().model_validate(obj, **options)


class ModalPrefectOrchestratorSettings(SandboxSettings):
    """Settings of the orchestrator, for a component, a pipeline or a step."""

    execution_mode: Literal["pipeline", "per_step"] = Field(
        default="pipeline",
        description="`pipeline`, the default, runs the whole pipeline in one sandbox: one cold start, one "
        "machine. `per_step` runs each step in a sandbox with its own resources and draws the "
        "steps in Prefect's UI. Not on a step.",
    )
    max_parallelism: int | None = Field(
        default=None,
        ge=1,
        description="Most steps of one run at the same time, in both modes. None, the default, is as many "
        'as the graph and the resources allow; with `runner="process"` in `per_step` mode as many as the machine '
        "has cores, at least two; in a dynamic pipeline ten inline steps. Not on a step.",
    )
    warm: bool = Field(
        default=True,
        description="Whether steps with equal image and resources take turns in one sandbox, which saves "
        "cold starts in `per_step` mode. Turn it off to give every step a fresh machine. Not "
        "on a step.",
    )
    warm_idle_timeout: int = Field(
        default=60,
        ge=0,
        description="Seconds that an idle warm sandbox is kept while the run may still need it. Default "
        "60; 0 ends it at once. Not on a step.",
    )
    orphan_timeout: int = Field(
        default=1800,
        ge=1,
        description="Seconds that a sandbox lives on without its flow; a flow that is back within them "
        "attaches to it again. Default 1800. Lower it to pay less after a crash. Not on a "
        "step.",
    )
    create_rate: float = Field(
        default=4.0,
        gt=0,
        allow_inf_nan=False,
        description="Most sandboxes created per second. Default 4, near which Modal starts to refuse; "
        "raise it if Modal has raised yours. Not on a step.",
    )
    concurrency_limit: str | None = Field(
        default=None,
        description="Name of a Prefect global concurrency limit of which each running step holds one "
        "slot, to share something scarce between runs. None, the default, takes none.",
    )
    synchronous: bool = Field(
        default=True,
        description="Whether the submitting process waits for the run, the default. False needs a work "
        "pool: without one the submitting process is the one that runs the flow. Not on a "
        "step.",
    )
    work_queue: str | None = Field(
        default=None,
        description="Work queue of the component's `work_pool`. None, the default, is the pool's own "
        "default queue. Not on a step.",
    )
    job_variables: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Overrides of the job variables of the component's `work_pool`, such as the worker's "
        "image or environment. Not on a step.",
    )

    COMPONENT_ONLY: ClassVar[frozenset[str]] = SandboxSettings.COMPONENT_ONLY | {
        *("prefect_api_url", "prefect_api_key", "work_pool")
    }


class ModalPrefectStepOperatorSettings(SandboxSettings):
    """Settings of the step operator, for a component, a pipeline or a step."""

    warm: bool = Field(
        default=True,
        description="Whether the steps of a run that say so and have equal image and resources take turns in one "
        "sandbox, where one process calls the step operator for all of them, as ZenML's local orchestrator does. Turn "
        "it off to give a step a fresh machine. Not for command steps and those of dynamic pipelines.",
    )
    warm_idle_timeout: int = Field(
        default=60,
        ge=0,
        description="Seconds that an idle warm sandbox is kept while another of these steps may still come; of the "
        "steps of a run the longest counts. Default 60; 0 ends it at once.",
    )
    orphan_timeout: int = Field(
        default=1800,
        ge=1,
        description="Seconds that a sandbox lives on without the process that called the step operator; "
        "one that is given the step run again within them waits for it. Default 1800. Lower it "
        "to pay less after a crash. Not for command steps, whose sandboxes have `timeout` alone.",
    )


class ModalPrefectOrchestratorConfig(RunnerConfig, BaseOrchestratorConfig, ModalPrefectOrchestratorSettings):
    """Config of the orchestrator component: its settings, and what only a component can say."""

    prefect_api_url: str | None = Field(
        default=None,
        description="URL of the Prefect API, such as `http://127.0.0.1:4200/api`. None, the default, is "
        "Prefect's own configuration (`PREFECT_API_URL`, the profile).",
    )
    prefect_api_key: str | None = SecretField(
        default=None,
        repr=False,
        description="API key of Prefect Cloud, best as a reference to a ZenML secret. None, the default, "
        "is Prefect's own configuration (`PREFECT_API_KEY`, the profile).",
    )
    work_pool: str | None = Field(
        default=None,
        description="Prefect work pool whose worker runs the flow. None, the default, runs the flow in "
        "the submitting process. Schedules and `synchronous=False` need one.",
    )

    model_config = _OF_A_COMPONENT

    @property
    def is_synchronous(self) -> bool:
        """Whether submitting waits for the run."""
        return self.synchronous

    @property
    def is_schedulable(self) -> bool:
        """Whether schedules are possible. ZenML asks when it is given one, before it stores anything.

        Raises ``InvalidSettings`` where they aren't: ZenML's own error says neither why nor what to do.
        """
        if self.work_pool is None:
            raise InvalidSettings(
                "work_pool",
                None,
                "a schedule needs a Prefect work pool whose worker runs it",
                "Set `work_pool` on the orchestrator, or give the schedule to a deployment of the flow, made with "
                "`prefect deploy --all`, whose parameter is the snapshot's id",
            )
        return True

    @property
    def supports_client_side_caching(self) -> bool:
        """False: a sandbox loads the whole snapshot again and would run what the client had pruned."""
        return False

    @property
    def handles_step_retries(self) -> bool:
        """True: Prefect or the program in the sandbox retries; ZenML's own loop must not retry as well."""
        return True


class ModalPrefectStepOperatorConfig(RunnerConfig, BaseStepOperatorConfig, ModalPrefectStepOperatorSettings):
    """Config of the step operator component."""

    model_config = _OF_A_COMPONENT
