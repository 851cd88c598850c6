"""When the loop of a step operator's calls is closed: with the last of them, and under none."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import pytest

from bridge.flow_run.outcome import End, SandboxEnd
from bridge.runners.base import Runner, SandboxRequest
from bridge.runners.scripted import ScriptedRunner, Stage
from bridge.step_operators.operating import Operating

SECONDS = 10


async def nothing(request: SandboxRequest, stage: Stage) -> SandboxEnd:
    return SandboxEnd(End.EXITED, 0)


class CountedRunner(ScriptedRunner):
    """A runner that knows how often it was opened, and closed."""

    def __init__(self) -> None:
        super().__init__(nothing)
        self.opened = 0
        self.closed = threading.Semaphore(0)

    async def __aenter__(self) -> CountedRunner:
        await super().__aenter__()
        self.opened += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        self.closed.release()


class Question:
    """Something that is asked and answered when the test says so."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._answer: Future[str] = Future()

    def __call__(self, runner: Runner) -> Coroutine[Any, Any, str]:
        return self._asked()

    async def _asked(self) -> str:
        self.begun.set()
        return await asyncio.wrap_future(self._answer)

    def answer(self, text: str) -> None:
        self._answer.set_result(text)


async def kind_of(runner: Runner) -> str:
    return runner.kind


@pytest.fixture
def runner() -> CountedRunner:
    return CountedRunner()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def test_a_question_that_is_answered_leaves_nothing_open(runner: CountedRunner) -> None:
    operating = Operating(lambda: runner)
    for number in (1, 2):
        assert operating.ask(kind_of) == "scripted"
        assert runner.closed.acquire(blocking=False), "closed by now"
        assert runner.opened == number


def test_a_short_question_does_not_close_the_loop_under_a_long_one(
    runner: CountedRunner, threads: ThreadPoolExecutor
) -> None:
    """As where one thread of a dynamic pipeline builds an image, and another one asks after a step."""
    operating, long = Operating(lambda: runner), Question()
    asked = threads.submit(operating.ask, long)
    assert long.begun.wait(SECONDS)
    assert operating.ask(kind_of) == "scripted"
    assert not runner.closed.acquire(blocking=False)
    long.answer("after all")
    assert asked.result(SECONDS) == "after all"
    assert runner.closed.acquire(blocking=False), "by whoever is last"
    assert runner.opened == 1


def test_a_question_that_fails_leaves_nothing_open(runner: CountedRunner) -> None:
    async def wrong(runner: Runner) -> None:
        raise LookupError("no such sandbox")

    operating = Operating(lambda: runner)
    with pytest.raises(LookupError, match="no such sandbox"):
        operating.ask(wrong)
    assert runner.closed.acquire(blocking=False)


def test_a_question_whose_thread_was_interrupted_goes_on_and_is_counted(runner: CountedRunner) -> None:
    """Ctrl-C ends the waiting; what runs on the loop is neither cut off nor left open."""
    operating, long = Operating(lambda: runner), Question()

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert long.begun.wait(SECONDS)
        signal.pthread_kill(main, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        operating.ask(long)
    interrupting.join(SECONDS)
    assert operating.ask(kind_of) == "scripted"
    assert not runner.closed.acquire(blocking=False)
    long.answer("to nobody")
    assert runner.closed.acquire(timeout=SECONDS)
    assert runner.opened == 1
