"""What the scheduler of a whole pipeline makes of a ZenML server that answers with errors."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

import pytest
from zenml.exceptions import CredentialsNotValid

from bridge.flow_run.outcome import Reported, StepRecord
from bridge.flow_run.ready import Fate
from bridge.host.admission import Capacity, Demand, SharedSandbox
from bridge.host.attempt import Attempt, Streams
from bridge.host.scheduler import Scheduler
from bridge.host.store import Store
from bridge.plan import FailureMode, Mode, Plan, RetryPolicy, SandboxSpec, StepPlan

BROKEN = RuntimeError("500 Server Error: Internal Server Error")
REFUSED = CredentialsNotValid("Authentication error: error decoding access token.")


class Hanging:
    """A step host with one step, which runs until it is signalled."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.signals: list[int] = []
        self._ended = asyncio.Event()
        self.pid = 0

    async def start(self, attempt: Attempt, streams: Streams) -> Hanging:
        self.began.set()
        return self

    async def wait(self) -> int:
        await self._ended.wait()
        return -self.signals[-1]

    def signal(self, number: int) -> None:
        self.signals.append(number)
        self._ended.set()

    async def close(self) -> None:
        """Nothing is left."""


class Answers(Store):
    """ZenML's answers, one after the other: whether the run is being stopped, or an error; the last one stays."""

    def __init__(
        self, *answers: bool | Exception, telling: Exception | None = None, known: StepRecord | None = None
    ) -> None:
        self._known_record = known or StepRecord()
        self._answers = list(answers)
        self._telling = telling
        self.asked = 0

    async def records(self, steps: list[str]) -> dict[str, StepRecord]:
        return dict.fromkeys(steps, self._known_record)

    async def record(self, step: str) -> StepRecord:
        return StepRecord(Reported.RUNNING, "id", 1)

    async def cached(self, step: str) -> None:
        return None

    async def stopping(self) -> bool:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def stop_running(self) -> None:
        if self._telling is not None:
            raise self._telling

    async def stopped(self, record: StepRecord) -> None:
        """It is told elsewhere what is told."""

    async def stop_retrying(self, step: str) -> None:
        """It is told elsewhere what is told."""


def scheduler(host: Hanging, store: Store, folder: Path, stop_poll: float, delays: tuple[float, ...] = ()) -> Scheduler:
    steps = (StepPlan("one", (), (), SandboxSpec(), retry=RetryPolicy(delays)),)
    plan = Plan("p", "snapshot", "stack", Mode.PIPELINE, FailureMode.FAIL_FAST, steps)
    admission = SharedSandbox(Capacity(), {"one": Demand()}, None)
    return Scheduler(plan, host, store, admission, str(folder), stop_poll=stop_poll)


@pytest.mark.parametrize("error", [BROKEN, REFUSED], ids=["broken", "refused"])
async def test_a_sandbox_that_is_ended_ends_whatever_zenml_answers(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    host = Hanging()
    scheduled = scheduler(host, Answers(False, error), tmp_path, stop_poll=600)
    running = asyncio.ensure_future(scheduled.run())
    await host.began.wait()
    await scheduled.terminate()
    assert await asyncio.wait_for(running, timeout=10) == {"one": Fate.STOPPED}
    assert host.signals == [signal.SIGKILL], "a step that goes on elsewhere isn't asked to end"
    assert str(error) in caplog.text


async def test_a_stop_is_seen_after_an_answer_that_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again, and that it couldn't tell is said once."""
    host, store = Hanging(), Answers(BROKEN, BROKEN, BROKEN, True)
    with caplog.at_level(logging.WARNING):
        fates = await asyncio.wait_for(scheduler(host, store, tmp_path, stop_poll=0.05).run(), timeout=10)
    assert (fates, host.signals) == ({"one": Fate.STOPPED}, [signal.SIGTERM, signal.SIGKILL])
    assert caplog.text.count(str(BROKEN)) == 1


async def test_the_steps_of_a_run_that_is_stopped_end_though_zenml_can_t_be_told(tmp_path: Path) -> None:
    host, store = Hanging(), Answers(False, True, telling=BROKEN)
    fates = await asyncio.wait_for(scheduler(host, store, tmp_path, stop_poll=0.05).run(), timeout=10)
    assert fates == {"one": Fate.STOPPED}


async def test_a_step_that_waited_in_a_sandbox_that_died_waits_anew(tmp_path: Path) -> None:
    host, store = Hanging(), Answers(False, known=StepRecord(Reported.RETRYING, "id", 1))
    scheduled = scheduler(host, store, tmp_path, stop_poll=600, delays=(0.5,))
    loop = asyncio.get_running_loop()
    asked = loop.time()
    running = asyncio.ensure_future(scheduled.run())
    await asyncio.wait_for(host.began.wait(), timeout=10)
    waited = loop.time() - asked
    await scheduled.terminate()
    await asyncio.wait_for(running, timeout=10)
    assert waited >= 0.5


async def test_a_step_that_waited_in_a_sandbox_that_died_is_stopped_in_the_next(tmp_path: Path) -> None:
    host, store = Hanging(), Answers(False, True, known=StepRecord(Reported.RETRYING, "id", 1))
    scheduled = scheduler(host, store, tmp_path, stop_poll=0.05, delays=(600,))
    fates = await asyncio.wait_for(scheduled.run(), timeout=10)
    assert (fates, host.began.is_set()) == ({"one": Fate.STOPPED}, False)
