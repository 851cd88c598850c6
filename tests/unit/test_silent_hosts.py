"""What a step in a warm sandbox makes of a host that says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from bridge.errors import RunnerUnavailable
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host import wire
from bridge.host.ends import encode
from bridge.host.wire import Call
from bridge.runners.base import HostCall, Sandbox, SandboxRequest
from bridge.runners.scripted import ScriptedRunner, Stage
from bridge.warming.warm_step import BATCHES, WarmHost, WarmStep

OUTAGE = 0.3
OVERDUE = 0.3
OK = SandboxEnd(End.EXITED, 0)

Host = Callable[[int], AsyncIterator[bytes]]
"""What the host of a sandbox says to a call; calls are counted from 1."""


def frame(kind: int, body: bytes = b"", position: int = 0) -> bytes:
    return wire.HEAD.pack(kind, 0.0, position, len(body)) + body


ACCEPTED = frame(wire.ACCEPTED)
ENDED = frame(wire.END, encode(OK))


def numbered(lines: int, missing: int = 0) -> Host:
    """A host whose step has counted so many lines and succeeded; ``missing`` bytes after them are gone."""

    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        position = 0
        for number in range(lines):
            body = b"%d\n" % number
            position += wire.HEAD.size + len(body)
            yield frame(wire.STDOUT, body, position)
        yield frame(wire.END, encode(OK), position + missing)

    return host


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


async def begun(runner: Calling, timeout: float | None = None) -> WarmStep:
    host = WarmHost(runner.start(SandboxRequest("host", "app", ("host",))), "socket")
    call = HostCall("socket", Call("key", "step", timeout=timeout))
    return WarmStep(runner, host, await host.made, call, outage=OUTAGE, overdue=OVERDUE)


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


async def test_a_host_that_never_tells_of_its_step_s_end_is_ended() -> None:
    """Its step's time was over long ago: nobody waits until the sandbox's own is."""

    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        await asyncio.Event().wait()

    async with Calling(host) as runner:
        step = await begun(runner, timeout=0.2)
        end = await asyncio.wait_for(step.wait(), timeout=20)
        assert (end.end, "after 0.2 s" in end.detail) == (End.TIMED_OUT, True)
        assert (step.leaves_it_fit, await runner.running({})) == (False, [])
        assert runner.calls == 2, "it is asked once more before"


async def test_a_connection_that_died_without_a_word_costs_nothing() -> None:
    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        if call == 1:
            await asyncio.Event().wait()
        yield ENDED

    async with Calling(host) as runner:
        step = await begun(runner, timeout=0.2)
        assert await asyncio.wait_for(step.wait(), timeout=20) == OK
        assert step.leaves_it_fit


async def test_a_host_that_never_answers_is_ended() -> None:
    """The step has not begun: it goes elsewhere."""

    async def host(call: int) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield ACCEPTED

    async with Calling(host) as runner:
        end = await asyncio.wait_for((await begun(runner)).wait(), timeout=20)
        assert end == SandboxEnd(End.LOST, detail="its step host doesn't answer")
        assert await runner.running({}) == []


async def test_a_step_without_a_limit_may_be_silent_for_ever() -> None:
    going_on = asyncio.Event()

    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        await going_on.wait()
        yield ENDED

    async with Calling(host) as runner:
        step = await begun(runner)
        await asyncio.wait({asyncio.ensure_future(step.wait())}, timeout=3 * (OUTAGE + OVERDUE))
        going_on.set()
        assert await step.wait() == OK


async def test_what_came_to_its_end_out_of_reach_is_believed() -> None:
    """The connection breaks before the step's time is over, and is there again long after."""

    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        if call == 1:
            raise RunnerUnavailable("the connection broke")
        await asyncio.sleep(OVERDUE / 3)
        yield ENDED

    async with Calling(host) as runner:
        assert await (await begun(runner, timeout=0.1)).wait() == OK


async def test_output_that_nobody_reads_is_not_its_host_s_silence() -> None:
    """Prefect may be away: what the step has said, and its end, wait in line."""
    async with Calling(numbered(1000)) as runner:
        step = await begun(runner, timeout=0.1)
        await asyncio.sleep(3 * OVERDUE)
        assert len([line async for line in step.output()]) == 1000
        assert await step.wait() == OK


async def test_nor_is_it_where_the_end_waits_behind_it() -> None:
    """The last of the output is gone, which is said before the end: that has no room yet."""
    async with Calling(numbered(BATCHES, missing=10)) as runner:
        step = await begun(runner, timeout=0.1)
        await asyncio.sleep(3 * OVERDUE)
        expected = [*map(str, range(BATCHES)), "[10 bytes of output are left out here]"]
        assert [line.text async for line in step.output()] == expected
        assert await step.wait() == OK
        assert runner.calls == 1


async def test_output_that_is_gone_at_the_end_is_told() -> None:
    async def host(call: int) -> AsyncIterator[bytes]:
        yield ACCEPTED
        yield frame(wire.END, encode(OK), 3 << 20)

    async with Calling(host) as runner:
        step = await begun(runner)
        assert [line.text async for line in step.output()] == ["[3 MiB of output are left out here]"]
        assert await step.wait() == OK
