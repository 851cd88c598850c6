"""The seam between the flow and the machines: what a runner must do, raise, and guarantee.

Three public implementations keep the contract in :mod:`bridge.runners.contract`: ``modal`` (the only importer
of the Modal SDK), ``process`` (sandboxes are local processes) and ``scripted`` (sandboxes are functions; for
tests and rehearsals).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from bridge.flow_run.outcome import SandboxEnd
from bridge.host.wire import Call
from bridge.plan import SandboxSpec
from bridge.planning.prices import NoPrices, Prices
from bridge.watching.output import OutputLine

if TYPE_CHECKING:
    from bridge.images.image_definition import ImageDefinition

OUTAGE_SECONDS = 120.0
"""How long Modal may be unreachable before a runner says so; the SDK itself gives up after 0.7 s."""


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One sandbox to be made.

    ``name`` is its idempotency key: asking twice for one name gives the same sandbox. ``secret_environment``
    never appears in a repr, a log, argv or a tag; a runner hands it over by the safest way it has. ``not_inherited``
    are variables of this process that it must not get, where it would get those.
    """

    name: str
    app: str
    command: tuple[str, ...]
    spec: SandboxSpec = SandboxSpec()
    environment: Mapping[str, str] = field(default_factory=dict)
    secret_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    tags: Mapping[str, str] = field(default_factory=dict)
    not_inherited: Collection[str] = ()


class Sandbox(Protocol):
    """A sandbox that exists or has existed."""

    @property
    def id(self) -> str:
        """The runner's id of it: a Modal sandbox id, or one that looks like it."""

    @property
    def name(self) -> str:
        """The name it was asked for by."""

    @property
    def url(self) -> str | None:
        """Its page in a dashboard, where there is one."""

    async def wait(self) -> SandboxEnd:
        """Wait for its end. Idempotent, and may be called by many at once.

        Survives control-plane blips by itself as far as its runner allows. Cancelling the wait leaves the
        sandbox alone. Raises ``RunnerUnavailable`` when the runner couldn't be asked for longer than it rides
        out; the sandbox may well be fine.
        """

    async def poll(self) -> SandboxEnd | None:
        """Return its end, or None while it runs. Raises ``RunnerUnavailable``."""

    def output(self) -> AsyncIterator[OutputLine]:
        """Yield its output, line by line, from the start, while it runs; ends after its end.

        Bad UTF-8 is replaced, lines longer than ``MAX_LINE_LENGTH`` are cut, a last line without a line end
        counts. Memory stays bounded however much is written. After the sandbox's end what is left is drained
        within a bounded time. Raises ``RunnerUnavailable`` if the stream breaks and can't be taken up again.
        """

    async def terminate(self) -> None:
        """End it with all its processes, and return once it has ended. Idempotent. Raises ``RunnerUnavailable``."""


@runtime_checkable
class Runner(Protocol):
    """Makes sandboxes. Use it as ``async with runner:``; leaving doesn't end any sandbox."""

    @property
    def kind(self) -> str:
        """``modal``, ``process`` or ``scripted``."""

    @property
    def default_parallelism(self) -> int | None:
        """Most sandboxes at once where the user didn't say; None leaves it open."""

    async def __aenter__(self) -> Runner:
        """Get ready: log in, where there is something to log in to. Not idempotent: enter a runner once.

        Raises ``SandboxRefused`` (with ``CredentialsRefused``) where it could make no sandbox here whatever is asked,
        ``RunnerUnavailable``.
        """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def host_command(self, *arguments: str) -> tuple[str, ...]:
        """Return the argv that runs :mod:`bridge.host` with ``arguments`` in a sandbox of this runner: there it
        is the very ``bridge`` that this process runs."""

    async def start(self, request: SandboxRequest) -> Sandbox:
        """Make a sandbox, or find the one of that name that still runs. Returns once it exists. Idempotent by
        ``request.name`` as long as that sandbox runs, also when asked by many at once.

        Being cancelled in the middle doesn't leave a sandbox behind. Raises ``SandboxRefused`` (with
        ``CredentialsRefused``) where the request is wrong, ``CapacityUnavailable`` where none of the GPU types
        could be had, each within ``spec.capacity_timeout``, ``RunnerUnavailable`` where the runner couldn't be asked.
        """

    async def find(self, app: str, name: str, modal_environment: str | None = None) -> Sandbox | None:
        """Return the running sandbox of that name, or None. Raises ``RunnerUnavailable``."""

    async def running(self, tags: Mapping[str, str], modal_environment: str | None = None) -> Sequence[Sandbox]:
        """Return the running sandboxes that carry all of ``tags``. Raises ``RunnerUnavailable``."""

    async def tagged(
        self, tags: Mapping[str, str], modal_environment: str | None = None
    ) -> Sequence[tuple[Sandbox, Mapping[str, str]]]:
        """Return what :meth:`running` does, each with all of its tags. Raises ``RunnerUnavailable``."""

    async def by_id(self, sandbox_id: str) -> Sandbox | None:
        """Return the sandbox of that id, running or ended; None if nobody knows it any more.

        What an ended one wrote may be gone. Raises ``RunnerUnavailable``.
        """


@runtime_checkable
class AsksAhead(Protocol):
    """A runner that can cheaply find out, before a run starts, whether what it needs exists. Not every runner can."""

    async def check(self, app: str | None, specs: Sequence[SandboxSpec]) -> None:
        """Look up what sandboxes of these specs refer to by name, without making any; says nothing of images and
        machines, which only a sandbox can find out. Call it inside ``async with runner:``.

        ``app`` is made where there is none; None leaves apps alone.

        Raises ``SandboxRefused`` (with ``CredentialsRefused``), ``RunnerUnavailable``.
        """


@runtime_checkable
class BuildsImages(Protocol):
    """A runner that builds images by itself. Not every runner can."""

    async def build_image(
        self,
        app: str,
        definition: ImageDefinition,
        modal_environment: str | None,
        say: Callable[[str], None],
    ) -> str:
        """Build an image, as far as it isn't there already, and return its id. Idempotent. Call it inside
        ``async with runner:``.

        ``say`` is told of each layer. Raises ``ImageNotBuilt``, ``SandboxRefused`` (with ``CredentialsRefused``),
        ``RunnerUnavailable``.
        """


@runtime_checkable
class HasDashboard(Protocol):
    """A runner whose apps have pages and whose sandboxes have prices. Not every runner has."""

    async def app_url(self, app: str, modal_environment: str | None = None) -> str:
        """Return the page of an app; it is made where there is none. Idempotent. Raises ``RunnerUnavailable``."""

    async def costs(
        self, app: str, tags: Mapping[str, str], tag: str, since: datetime, modal_environment: str | None = None
    ) -> Mapping[str | None, Decimal]:
        """Return what an app's sandboxes that carry all of ``tags`` cost since then, in US dollars, by their value of
        ``tag``; None stands for those without it. Estimated, and some minutes late; empty where nothing is known.

        ``since`` is timezone-aware. Raises ``RunnerUnavailable``.
        """


@runtime_checkable
class HasPrices(Protocol):
    """A runner that knows what its machines cost before one is made. Not every runner does."""

    async def prices(self) -> Prices | NoPrices:
        """Return what machines cost. Makes nothing. Raises ``CredentialsRefused``, ``RunnerUnavailable``,
        ``SandboxRefused`` where the service doesn't take the question."""


@dataclass(frozen=True, slots=True)
class HostCall:
    """What is asked of a step host (:mod:`bridge.host.serve`): a step, and the variables that it alone gets.

    ``socket`` is the name that the host was started with. ``secret_environment`` never appears anywhere, as in
    :class:`SandboxRequest`.
    """

    socket: str
    call: Call
    environment: Mapping[str, str] = field(default_factory=dict)
    secret_environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@runtime_checkable
class CallsHosts(Protocol):
    """A runner whose sandboxes may run the step host, so that steps take turns in them. Not every runner can."""

    @property
    def can_call(self) -> bool:
        """Whether it can here: a step host needs Linux."""

    def call(self, sandbox: Sandbox, call: HostCall) -> AsyncIterator[bytes]:
        """Ask the host in a sandbox of this runner; yields what it says (:mod:`bridge.host.wire`) until it has said
        everything. The variables are added to those that the sandbox was made with.

        Idempotent by the call's key: a host that knows it tells what became of that attempt. Waits while the host isn't
        there yet and its sandbox runs. Leaving it early leaves the step running.

        Raises ``RunnerUnavailable`` where the host can't be reached, or the connection breaks: the step may well be
        fine.
        """

    async def reload_volumes(self, sandbox: Sandbox) -> None:
        """Show a running sandbox what others have written to its volumes since they were mounted or reloaded.

        Idempotent. Raises ``SandboxRefused`` where that can't be done, as while a file on one of them is open, and
        ``RunnerUnavailable``.
        """
