"""An event is waited for no longer than it may take, and what is waited for besides it goes on."""

from __future__ import annotations

import asyncio

import pytest

from bridge.awaiting import done_or_set, set_within
from tests.unit import virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(("at", "is_set", "until"), [(2.0, True, 2.0), (9.0, False, 5.0)])
def test_an_event_is_waited_for_so_long_at_most(at: float, is_set: bool, until: float) -> None:
    async def scenario() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(at, event.set)
        assert await set_within(event, 5.0) is is_set
        assert now() == until

    virtual_time.run(scenario())


def test_one_that_is_set_is_not_waited_for() -> None:
    async def scenario() -> None:
        event = asyncio.Event()
        event.set()
        assert await set_within(event, 5.0)
        assert now() == 0.0

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("done_at", "set_at", "timeout", "until"),
    [(1.0, 2.0, None, 1.0), (3.0, 2.0, None, 2.0), (3.0, 4.0, 2.5, 2.5), (3.0, None, None, 3.0)],
)
def test_whatever_comes_first_and_the_future_goes_on(
    done_at: float, set_at: float | None, timeout: float | None, until: float
) -> None:
    async def scenario() -> None:
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        if set_at is not None:
            loop.call_later(set_at, event.set)
        future = asyncio.ensure_future(asyncio.sleep(done_at, "done"))
        await done_or_set(future, event, timeout)
        assert now() == until
        assert future.done() == (until == done_at)
        assert await future == "done"

    virtual_time.run(scenario())


def test_a_future_that_fails_is_its_caller_s() -> None:
    async def scenario() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("mine"))
        await done_or_set(future, asyncio.Event())
        with pytest.raises(ValueError, match="mine"):
            await future

    virtual_time.run(scenario())


def test_who_is_cancelled_leaves_the_future_and_nothing_of_its_own() -> None:
    async def scenario() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(done_or_set(future, asyncio.Event()))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait({waiting})
        await asyncio.sleep(1)
        assert waiting.cancelled()
        assert not future.done()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtual_time.run(scenario())
