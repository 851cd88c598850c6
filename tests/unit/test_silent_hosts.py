"""What a step in a warm sandbox makes of a host that says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from bridge.errors import RunnerUnavailable
from bridge.host import wire
from bridge.host.ends import encode
from bridge.host.wire import Call
from bridge.outcome import End, SandboxEnd
from bridge.runners.base import HostCall, Sandbox, SandboxRequest
from bridge.runners.scripted import ScriptedRunner, Stage
from bridge.warm_step import WarmHost, WarmStep

OUTAGE = 0.3
OK = SandboxEnd(End.EXITED, 0)

Host = Callable[[int], AsyncIterator[bytes]]
"""What the host of a sandbox says to a call; calls are counted from 1."""


def frame(kind: int, body: bytes = b"", position: int = 0) -> bytes:
    return wire.HEAD.pack(kind, 0.0, position, len(body)) + body


ACCEPTED = frame(wire.ACCEPTED)
ENDED = frame(wire.END, encode(OK))


async def for_ever(request: SandboxRequest, stage: Stage) -> SandboxEnd:
    await stage.for_ever()
    return SandboxEnd(End.TERMINATED)


class Calling(ScriptedRunner):
    """A runner in whose sandboxes a host speaks."""

    def __init__(self, host: Host) -> None:
        super().__init__(for_ever)
        self._host = host
        self.calls = 0

    @property
    def can_call(self) -> bool:
        return True

    async def call(self, sandbox: Sandbox, call: HostCall) -> AsyncIterator[bytes]:
        self.calls += 1
        async for said in self._host(self.calls):
            yield said

    async def reload_volumes(self, sandbox: Sandbox) -> None:
        raise AssertionError("nobody has asked for it")


async def begun(runner: Calling) -> WarmStep:
    host = WarmHost(runner.start(SandboxRequest("host", "app", ("host",))), "socket")
    return WarmStep(runner, host, await host.made, HostCall("socket", Call("key", "step")), outage=OUTAGE)


async def test_a_connection_that_was_held_for_long_and_breaks_is_no_outage() -> None:
    """The step has nothing to say: its host was in reach all the time."""

    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        if call == 3:
            yield ENDED
            return
        await asyncio.sleep(2 * OUTAGE)
        raise RunnerUnavailable("the connection broke")

    async with Calling(host) as runner:
        step = await begun(runner)
        assert await step.wait() == OK
        assert (runner.calls, step.leaves_it_fit) == (3, True)


async def test_a_host_that_breaks_off_at_once_whenever_it_is_asked_is_out_of_reach() -> None:
    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        raise RunnerUnavailable("the connection broke")

    async with Calling(host) as runner:
        end = await (await begun(runner)).wait()
        assert end == SandboxEnd(End.LOST, detail="its step host can't be reached: the connection broke")
        assert runner.calls > 1
