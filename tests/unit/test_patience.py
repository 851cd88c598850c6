"""A runner that can't be asked at first: what is asked of a sandbox is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bridge.errors import RunnerUnavailable, SandboxRefused
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.runners.base import OutputLine
from bridge.runners.patience import terminate, while_it_may_live
from tests.unit import virtual_time

ENDED = SandboxEnd(End.TERMINATED)


class Away:
    """A sandbox of which the first questions aren't answered."""

    id = name = "away"
    url = None

    def __init__(self, times: int) -> None:
        self.left = times
        self.ended: asyncio.Future[SandboxEnd] = asyncio.get_running_loop().create_future()

    async def wait(self) -> SandboxEnd:
        if self.left > 0:
            self.left -= 1
            raise RunnerUnavailable("nobody answers")
        return ENDED

    async def poll(self) -> SandboxEnd | None:
        return await self.wait()

    async def terminate(self) -> None:
        await self.wait()

    async def output(self) -> AsyncIterator[OutputLine]:
        for line in ():
            yield line


def test_it_is_asked_until_it_answers() -> None:
    """Also by a function that only returns what is to be awaited."""

    async def asked() -> list[SandboxEnd]:
        one, other = Away(5), Away(5)
        return [await while_it_may_live(one.wait, 60), await while_it_may_live(lambda: other.wait(), 60)]

    assert virtual_time.run(asked()) == [ENDED, ENDED]


def test_what_it_answers_is_believed() -> None:
    async def refuses() -> None:
        raise SandboxRefused("no such sandbox")

    with pytest.raises(SandboxRefused):
        virtual_time.run(while_it_may_live(refuses, 60))


def test_it_is_ended_as_soon_as_that_can_be_asked_for() -> None:
    async def ended() -> int:
        sandbox = Away(5)
        await terminate(sandbox, sandbox.ended)
        return sandbox.left

    assert virtual_time.run(ended()) == 0


def test_one_that_has_ended_by_itself_is_not_ended_for_ever() -> None:
    async def ended() -> None:
        sandbox = Away(10**6)
        asyncio.get_running_loop().call_later(300, sandbox.ended.set_result, ENDED)
        await terminate(sandbox, sandbox.ended)
        assert 300 <= asyncio.get_running_loop().time() < 600

    virtual_time.run(ended())
