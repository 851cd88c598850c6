"""A sandbox on Modal: waiting for it, asking, ending it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import modal
from modal import exception

from bridge import upstream_modal
from bridge.errors import RunnerUnavailable
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.runners.modal_clients import Clients
from bridge.runners.modal_errors import SDK_ERRORS, is_transient, ride_out, translated
from bridge.upstream_modal import Result, Status
from bridge.watching.output import OutputLine

_ENDS: dict[int, tuple[End, str]] = {
    Status.GENERIC_STATUS_TERMINATED: (End.TERMINATED, ""),
    Status.GENERIC_STATUS_TIMEOUT: (End.TIMED_OUT, ""),
    Status.GENERIC_STATUS_INIT_FAILURE: (End.NEVER_STARTED, ""),
    Status.GENERIC_STATUS_INTERNAL_FAILURE: (End.LOST, "Modal reports an internal failure"),
    Status.GENERIC_STATUS_IDLE_TIMEOUT: (End.LOST, "Modal reports an idle timeout, which this package never sets"),
    upstream_modal.MEMORY_MANAGER_EVICTION: (End.EVICTED, "Modal's memory manager evicted it"),
    upstream_modal.MEMORY_THRASHING_EVICTION: (End.EVICTED, "Modal evicted it for memory thrashing"),
    upstream_modal.KERNEL_OOM_KILL: (End.OUT_OF_MEMORY, ""),
}
_EXITED = (Status.GENERIC_STATUS_SUCCESS, Status.GENERIC_STATUS_FAILURE)


def end_of(result: Result) -> SandboxEnd:
    """Say how a sandbox ended by Modal's own status; its return code can't tell half of these apart."""
    if result.status in _EXITED:
        return SandboxEnd(End.EXITED, result.exit_code, result.exception)
    end, detail = _ENDS.get(result.status, (End.LOST, f"Modal reports status {result.status}"))
    return SandboxEnd(end, detail=": ".join(filter(None, (detail, result.exception))))


class ModalSandbox:
    """A sandbox on Modal, on either backend. Belongs to its runner's event loop.

    ``outage`` is how many seconds Modal may be away before ``wait`` gives up asking.
    """

    def __init__(self, handle: modal.Sandbox, name: str, url: str, clients: Clients, outage: float) -> None:
        self._handle = handle
        self._name = name
        self._url = url
        self._clients = clients
        self._outage = outage
        self._end: SandboxEnd | None = None
        self._watch: asyncio.Task[SandboxEnd] | None = None
        self._waiting = 0
        self._talking = 0
        self._connected = False
        """Whether the handle may hold a connection to the worker."""

    @classmethod
    async def of(cls, handle: modal.Sandbox, name: str, clients: Clients, outage: float) -> ModalSandbox:
        """Return the sandbox of a handle that belongs to the main client."""
        return cls(handle, name, await handle.get_dashboard_url.aio(), clients, outage)

    def __repr__(self) -> str:
        return f"<ModalSandbox {self.id} {self.name}>"

    @asynccontextmanager
    async def reached(self) -> AsyncIterator[modal.Sandbox]:
        """Lend the SDK's object to whoever talks to the sandbox's worker. Raises ``RunnerUnavailable`` after its end.

        The connection lasts from one talk to the next, until the sandbox has ended and the last talk is over.
        """
        if self._end is not None:
            raise RunnerUnavailable(f"Sandbox {self.id} has ended.")
        self._connected = True
        self._talking += 1
        try:
            yield self._handle
        finally:
            self._talking -= 1
            await self._hang_up()

    @property
    def id(self) -> str:
        """Modal's id."""
        return self._handle.object_id

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self._name

    @property
    def url(self) -> str | None:
        """Its page in Modal's dashboard."""
        return self._url

    async def wait(self) -> SandboxEnd:
        """Wait for its end. One long poll, however many wait. Raises ``RunnerUnavailable``."""
        if self._end is not None:
            return self._end
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._until_end())
        watch = self._watch
        self._waiting += 1
        try:
            end = await asyncio.shield(watch)
        finally:
            self._waiting -= 1
            if not self._waiting and not watch.done():
                watch.cancel()
                self._watch = None
        return await self._ended(end)

    async def poll(self) -> SandboxEnd | None:
        """Return its end, or None while it runs. Raises ``RunnerUnavailable``."""
        try:
            end = await self._ask()
        except SDK_ERRORS as error:
            raise translated(error, f"Sandbox {self.id} can't be asked") from error
        return None if end is None else await self._ended(end)

    def output(self) -> AsyncIterator[OutputLine]:
        """Yield its output; see :mod:`bridge.runners.modal_output`. Raises ``RunnerUnavailable``."""
        from bridge.runners.modal_output import ModalOutput

        return ModalOutput(self, self._clients, self._outage).lines()

    async def terminate(self) -> None:
        """End it, and wait for that. Raises ``RunnerUnavailable``."""
        if self._end is not None:
            return

        async def end_it() -> None:
            if self._end is None:
                await self._handle.terminate.aio()

        try:
            await ride_out(end_it, self._outage)
        except exception.NotFoundError:
            await self._ended(_gone())
            return
        except SDK_ERRORS as error:
            raise translated(error, f"Sandbox {self.id} can't be terminated") from error
        await self.wait()

    async def _ended(self, end: SandboxEnd) -> SandboxEnd:
        self._end = end
        await self._hang_up()
        return end

    async def _hang_up(self) -> None:
        """Give back the connection to the worker: two descriptors and 0.1 MB, which older SDKs keep to the run's end.

        Not under a talk that is on: detaching throws away what it hasn't read yet. A detached handle can't be asked
        or ended any more, so whoever does that looks first whether the end is known.
        """
        if self._end is not None and self._connected and not self._talking:
            await self._handle.detach.aio()  # type: ignore[no-untyped-call]

    async def _ask(self) -> SandboxEnd | None:
        if self._end is not None:
            return self._end
        try:
            await self._handle.poll.aio()
        except exception.NotFoundError:
            return _gone()
        result = upstream_modal.result_of(self._handle)
        return end_of(result) if result else None

    async def _until_end(self) -> SandboxEnd:
        end: SandboxEnd | None = None
        while end is None:
            try:
                end = await self._long_poll()
            except SDK_ERRORS as error:
                # An outage is measured from its own first failure: this wait may be hours old.
                try:
                    if not is_transient(error):
                        raise
                    end = await ride_out(self._ask, self._outage)
                except SDK_ERRORS as lasting:
                    raise translated(lasting, f"Sandbox {self.id} can't be waited for") from lasting
        return end

    async def _long_poll(self) -> SandboxEnd | None:
        async with self._clients.lease(1) as client:
            try:
                handle = await modal.Sandbox.from_id.aio(self.id, client=client)
                await handle.wait.aio(raise_on_termination=False)
            except exception.NotFoundError:
                return _gone()
            except exception.SandboxTimeoutError:
                return SandboxEnd(End.TIMED_OUT)
            result = upstream_modal.result_of(handle)
            return end_of(result) if result else None


def _gone() -> SandboxEnd:
    return SandboxEnd(End.LOST, detail="Modal doesn't know it any more")
