"""The pauses before another sandbox: what struck one has often struck many, which mustn't come back together."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

from bridge.flow_run.again import LONGEST_PAUSE_SECONDS, Again, differing
from bridge.flow_run.outcome import Cost, End, Outcome, SandboxEnd, StepRecord, Verdict, judge
from tests.unit import virtual_time

SERIES = 200
LOSSES = 10


def test_pauses_grow_and_have_a_limit() -> None:
    """At random up to 2, 4, 8, … seconds, at most a minute, and at least half a second."""
    grow_and_have_a_limit([differing(LOSSES) for _ in range(SERIES)])


def grow_and_have_a_limit(series: list[list[float]]) -> None:
    for number, pauses in enumerate(zip(*series, strict=True)):
        most = min(2.0 * 2**number, LONGEST_PAUSE_SECONDS)
        assert 0.5 <= round(min(pauses), 6) <= round(max(pauses), 6) <= most, number
        # Of two hundred one is surely in the upper half of what is allowed.
        assert max(pauses) > most / 2, number


def test_pauses_differ() -> None:
    """A thousand steps that lost their sandboxes in one moment don't ask for new ones in one moment."""
    for pauses in zip(*(differing(LOSSES) for _ in range(SERIES)), strict=True):
        assert len({round(pause, 3) for pause in pauses}) > SERIES / 2
    assert differing(0) == []


class Step:
    """One whose sandboxes are all lost as soon as they come."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        """When it asked for a sandbox."""
        self.kill = asyncio.Event()
        self.lost: list[str] = []
        self.again = Again(LOSSES, None, self.kill, logging.getLogger("loses"), self.lost.append)

    async def loses(self) -> None:
        async def try_once() -> Outcome:
            self.asked.append(asyncio.get_running_loop().time())
            return judge(SandboxEnd(End.EVICTED), StepRecord(), stop_requested=self.kill.is_set())

        self.outcome = await self.again.until_it_is_not_lost(try_once)


def test_the_next_sandbox_is_asked_for_after_such_a_pause() -> None:
    """Many that lose theirs together; and there are no more of them than `infrastructure_retries` says."""

    async def all_of_them() -> list[Step]:
        steps = [Step() for _ in range(SERIES)]
        await asyncio.gather(*(step.loses() for step in steps))
        return steps

    steps = virtual_time.run(all_of_them())
    assert {len(step.asked) for step in steps} == {len(step.lost) for step in steps} == {LOSSES + 1}
    grow_and_have_a_limit([[later - earlier for earlier, later in pairwise(step.asked)] for step in steps])
    assert {(step.outcome.verdict, step.outcome.cost) for step in steps} == {(Verdict.FAILED, Cost.EVERYTHING)}
    for asked in list(zip(*(step.asked for step in steps), strict=True))[1:]:
        assert len({round(moment, 3) for moment in asked}) > SERIES / 2


def test_a_step_that_is_stopped_waits_no_longer() -> None:
    async def stopped() -> Step:
        step = Step()
        losing = asyncio.ensure_future(step.loses())
        await asyncio.sleep(0.1)
        step.kill.set()
        await losing
        return step

    step = virtual_time.run(stopped())
    assert step.asked == [0.0, 0.1]
    assert step.outcome.verdict is Verdict.STOPPED
