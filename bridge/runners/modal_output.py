"""The output of a sandbox on Modal: two streams of bytes, merged into lines while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import modal
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge import upstream_modal
from bridge.errors import RunnerError, RunnerUnavailable
from bridge.runners.modal_clients import Clients
from bridge.runners.modal_errors import SDK_ERRORS, is_transient, ride_out, translated
from bridge.watching.output import LineAssembler, OutputLine, Stream

if TYPE_CHECKING:
    from bridge.runners.modal_sandbox import ModalSandbox

DRAIN_SECONDS = 10.0
"""How long a stream may be silent after its sandbox has ended before it is left."""
_HEALTHY_SECONDS = 90.0
"""An attempt that lasted longer than the SDK tries to connect was a stream that worked and had nothing to say."""
_BATCHES = 64
"""Most pieces of output held in memory; a piece is what one message of Modal brings."""

_logger = logging.getLogger(__name__)

_DESCRIPTORS: tuple[tuple[int, Stream], ...] = ((1, "stdout"), (2, "stderr"))


class _Trouble:
    """Says once, after ``patience`` seconds of nothing but failures, that a stream can't be read. tenacity's hook."""

    def __init__(self, doing: str, patience: float) -> None:
        self._doing = doing
        self._patience = patience
        self._since: float | None = None
        self._began = 0.0
        self._told = False
        self.last = ""
        """The last failure, "" after progress."""

    def begin(self) -> None:
        """The stream is opened, once more."""
        self._began = time.monotonic()

    def progress(self) -> None:
        """It brings something."""
        self._since, self._told, self.last = None, False, ""

    def __call__(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        now = time.monotonic()
        if self._since is None or now - self._began > _HEALTHY_SECONDS:
            self._since = now
        if error is None:
            return
        self.last = str(translated(error, self._doing))
        if now - self._since >= self._patience and not self._told:
            self._told = True
            _logger.warning("%s It is tried again until the sandbox has ended.", self.last)


class ModalOutput:
    """One reading of a sandbox's output, from its start."""

    def __init__(self, sandbox: ModalSandbox, clients: Clients, outage: float) -> None:
        self._sandbox = sandbox
        self._clients = clients
        self._outage = outage
        self._doing = f"The output of sandbox {sandbox.id} broke off"
        self._troubles = {descriptor: _Trouble(self._doing, outage) for descriptor, _ in _DESCRIPTORS}
        self._queue: asyncio.Queue[list[OutputLine] | RunnerError | None] = asyncio.Queue(_BATCHES)

    async def lines(self) -> AsyncIterator[OutputLine]:
        """Yield its lines. Raises ``RunnerUnavailable`` where they can't be had after its end, or not at all.

        While it may still run a stream that broke off is taken up again, however long that takes.
        """
        async with self._handle() as handle:
            pumps = [asyncio.create_task(self._pump(handle, descriptor, stream)) for descriptor, stream in _DESCRIPTORS]
            end = asyncio.create_task(self._until_end())
            try:
                open_streams = len(pumps)
                while open_streams:
                    piece = await self._next(end)
                    if isinstance(piece, RunnerError):
                        raise piece
                    if piece is None:
                        open_streams -= 1
                        continue
                    for line in piece:
                        yield line
            finally:
                for task in (*pumps, end):
                    task.cancel()
                await asyncio.gather(*pumps, end, return_exceptions=True)

    async def _until_end(self) -> None:
        """Wait for the sandbox's end, through any outage: while Modal can't be asked, there may be more to come."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(RunnerUnavailable), wait=wait_random_exponential(multiplier=0.5, max=30)
        ):
            with attempt:
                await self._sandbox.wait()

    @asynccontextmanager
    async def _handle(self) -> AsyncIterator[modal.Sandbox]:
        # A handle of its own: detaching it gives back the connection to the worker that V2 output comes from.
        sandbox_id = self._sandbox.id
        # V1 output takes a stream of the control plane for each of stdout and stderr.
        async with self._clients.lease(2 if upstream_modal.is_v1(sandbox_id) else 0) as client:
            try:
                handle = await ride_out(lambda: modal.Sandbox.from_id.aio(sandbox_id, client=client), self._outage)
            except SDK_ERRORS as error:
                raise self._broken(error) from error
            try:
                yield handle
            finally:
                await handle.detach.aio()  # type: ignore[no-untyped-call]

    async def _next(self, end: asyncio.Task[object]) -> list[OutputLine] | RunnerError | None:
        """The next piece; when the sandbox has ended and nothing comes for a while, the end of both streams."""
        piece = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({piece, end}, return_when=asyncio.FIRST_COMPLETED)
            if not piece.done():
                await asyncio.wait({piece}, timeout=DRAIN_SECONDS)
            return piece.result() if piece.done() else self._undrained(end)
        finally:
            piece.cancel()

    def _undrained(self, end: asyncio.Task[object]) -> RunnerError:
        failure = end.exception()
        if isinstance(failure, RunnerError):
            return failure
        late = f"The output of sandbox {self._sandbox.id} didn't end within {DRAIN_SECONDS:g} s of its end."
        known = [trouble.last for trouble in self._troubles.values() if trouble.last]
        return RunnerUnavailable(" ".join([late, *known[:1]]))

    async def _pump(self, handle: modal.Sandbox, descriptor: int, stream: Stream) -> None:
        assembler = LineAssembler(stream)
        trouble = self._troubles[descriptor]
        position = ""
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(is_transient),
                wait=wait_random_exponential(multiplier=0.5, max=5),
                before_sleep=trouble,
                reraise=True,
            ):
                with attempt:
                    trouble.begin()
                    async for data, after in upstream_modal.read_output(handle, descriptor, position):
                        trouble.progress()
                        position = after
                        if lines := assembler.feed(data):
                            await self._queue.put(lines)
        except SDK_ERRORS as error:
            # Where its machine is gone, so is what it still had to say.
            if not await self._has_ended():
                await self._queue.put(self._broken(error))
                return
        await self._queue.put(assembler.finish())
        await self._queue.put(None)

    async def _has_ended(self) -> bool:
        try:
            return await self._sandbox.poll() is not None
        except RunnerError:
            return False

    def _broken(self, error: BaseException) -> RunnerUnavailable:
        return RunnerUnavailable(str(translated(error, self._doing)))
