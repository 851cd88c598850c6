"""What runs side by side in a flow of ``per_step`` mode."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bridge.flow_run.per_step import to_their_end


async def test_a_defect_of_one_ends_the_others_before_it_is_raised() -> None:
    killed, ended = asyncio.Event(), []

    async def breaks() -> None:
        raise ZeroDivisionError

    async def goes_on() -> None:
        await killed.wait()
        await asyncio.to_thread(threading.Event().wait, 0.1)
        ended.append("with what it had to do")

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(to_their_end([goes_on(), breaks()], killed.set), 10)
    assert ended == ["with what it had to do"]


async def test_a_cancel_reaches_all_of_them() -> None:
    begun, cancelled = asyncio.Event(), []

    async def waits(name: str) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    both = asyncio.ensure_future(to_their_end([waits("one"), waits("two")], lambda: None))
    await begun.wait()
    await asyncio.sleep(0)
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both
    assert sorted(cancelled) == ["one", "two"]
