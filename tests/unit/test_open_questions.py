"""A success that needs no question doesn't overtake what is being asked about another step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from bridge.flow_run.outcome import Reported, StepRecord
from bridge.zenml_side.open_questions import OpenQuestions
from bridge.zenml_side.step_records import StepRecords
from bridge.zenml_side.zenml_calls import ZenMLCalls

SUCCESS = StepRecord(Reported.SUCCEEDED, "1", 1)
FAILURE = StepRecord(Reported.FAILED, "2", 1)


async def test_a_known_success_comes_after_a_failure_that_is_being_asked_about() -> None:
    asked, answers = threading.Event(), threading.Event()

    def latest(steps: Sequence[str]) -> dict[str, StepRecord]:
        asked.set()
        assert answers.wait(30)
        return dict.fromkeys(steps, FAILURE)

    thread = ZenMLCalls()
    records = StepRecords(thread, latest)
    heard: list[StepRecord] = []

    async def hear(record: asyncio.Future[StepRecord]) -> None:
        heard.append(await record)

    failing = asyncio.ensure_future(hear(asyncio.ensure_future(records.read("fails"))))
    await asyncio.to_thread(asked.wait, 30)
    succeeding = asyncio.ensure_future(hear(asyncio.ensure_future(records.in_order(SUCCESS))))
    try:
        await asyncio.wait({succeeding}, timeout=0.1)  # time in which it could have come first
        answers.set()
        await asyncio.gather(failing, succeeding)
    finally:
        answers.set()
        thread.close()
    assert heard == [FAILURE, SUCCESS]


async def test_where_nothing_is_asked_nobody_waits() -> None:
    thread = ZenMLCalls()
    try:
        records = StepRecords(thread, lambda steps: dict.fromkeys(steps, FAILURE))
        assert await records.read("fails") == FAILURE
        assert await asyncio.wait_for(records.in_order(SUCCESS), 30) == SUCCESS
    finally:
        thread.close()


async def test_what_is_asked_later_is_not_waited_for() -> None:
    questions, loop = OpenQuestions(), asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    asking = asyncio.ensure_future(questions.asked(first))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(questions.all_answered())
    await asyncio.sleep(0)
    later = asyncio.ensure_future(questions.asked(second))
    first.set_result(1)
    await waiting
    assert await asking == 1
    assert not later.done()
    second.set_result(2)
    assert await later == 2


async def test_a_question_that_fails_is_answered_too_and_one_whose_asker_went_away_is_still_open() -> None:
    questions, loop = OpenQuestions(), asyncio.get_running_loop()
    question = loop.create_future()
    asking, gone = (asyncio.ensure_future(questions.asked(question)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    waiting = asyncio.ensure_future(questions.all_answered())
    await asyncio.sleep(0)
    assert not waiting.done()
    question.set_exception(OSError("away"))
    await waiting
    with pytest.raises(OSError, match="away"):
        await asking
