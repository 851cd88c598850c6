"""A sandbox that was lost is followed by another one: how often, how soon, and what a person is told of it.

Whatever struck one sandbox has often struck many at once, so the pauses grow and differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt, wait_random_exponential

from bridge.awaiting import set_within
from bridge.flow_run.outcome import Cost, Diagnosis, Outcome, Verdict

if TYPE_CHECKING:
    from bridge.watching.logs import Logger  # which imports Prefect: a step operator's process may have none

LONGEST_PAUSE_SECONDS = 60.0

pauses = wait_random_exponential(multiplier=2, min=0.5, max=LONGEST_PAUSE_SECONDS)
"""How long to wait before the next sandbox, in seconds."""


def differing(number: int) -> list[float]:
    """Return that many pauses in advance, for who has to say so before the first loss."""
    state = RetryCallState(AsyncRetrying(), None, (), {})
    found = []
    for state.attempt_number in range(1, number + 1):
        found.append(pauses(state))
    return found


class NotAsked(Exception):
    """The runner couldn't be asked for a sandbox: whether there is one, nobody knows. The message says why."""


class Again:
    """The sandboxes of one attempt, one after the other.

    Args:
        retries: How many may be lost.
        step_run_id: ZenML's step run that the first one goes on with, where there is one.
        kill: Ends the wait for the next one.
        logger: Where a loss is said.
        lost: Told of each loss in a few words.
        first: The number of the first sandbox: more than 1 where an earlier process of the flow lost some already.
    """

    def __init__(
        self,
        retries: int,
        step_run_id: str | None,
        kill: asyncio.Event,
        logger: Logger,
        lost: Callable[[str], None],
        first: int = 1,
    ) -> None:
        self.sandbox = self._first = first
        """The number of the sandbox to ask for, from 1: one that nobody could ask for is asked for again."""
        self.step_run_id = step_run_id
        """ZenML's step run that the next sandbox goes on with."""
        self._retries = retries
        self._kill = kill
        self._logger = logger
        self._lost = lost
        self._keep = False

    def same_sandbox(self) -> None:
        """The sandbox of this number may exist: the next try has to ask for the same one, lest a step run twice."""
        self._keep = True

    async def until_it_is_not_lost(self, try_once: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Return the first outcome that isn't ``LOST``, or the failure that so many losses are.

        Raises what ``try_once`` raises.
        """
        again = AsyncRetrying(
            retry=retry_if_result(lambda outcome: outcome.verdict is Verdict.LOST),
            stop=stop_after_attempt(self._retries + 2 - self._first),
            wait=pauses,
            before_sleep=self._before_the_next,
            sleep=self._sleep,
            retry_error_callback=self._used_up,
        )
        outcome: Outcome = await again(try_once)
        return outcome

    def _before_the_next(self, state: RetryCallState) -> None:
        outcome = _outcome(state)
        self._say(outcome, state, f"another one in {state.upcoming_sleep:.0f} s")
        self.step_run_id = outcome.record.step_run_id or self.step_run_id
        self.sandbox += 0 if self._keep else 1
        self._keep = False

    def _used_up(self, state: RetryCallState) -> Outcome:
        outcome = _outcome(state)
        self._say(outcome, state, "no other is tried")
        lost = outcome.diagnosis or Diagnosis("The sandbox was lost")
        diagnosis = Diagnosis(
            f"{lost.what}, in {self._retries + 1} sandboxes one after the other",
            lost.detail,
            "Modal's status page may tell; `infrastructure_retries` sets how many are tried",
        )
        return Outcome(Verdict.FAILED, Cost.EVERYTHING, outcome.record, diagnosis)

    def _say(self, outcome: Outcome, state: RetryCallState, next_one: str) -> None:
        tried = f"sandbox {self._first - 1 + state.attempt_number} of {self._retries + 1}"
        self._logger.warning("%s (%s; %s)", outcome.diagnosis, tried, next_one)
        if outcome.diagnosis is not None:
            self._lost(outcome.diagnosis.what)

    async def _sleep(self, seconds: float) -> None:
        await set_within(self._kill, seconds)


def _outcome(state: RetryCallState) -> Outcome:
    assert state.outcome is not None
    outcome: Outcome = state.outcome.result()
    return outcome
