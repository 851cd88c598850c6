"""Logs on their way to an API that answers badly. Prefect's real client; its transport is respx."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from uuid import UUID, uuid4

import httpx
import pytest
import respx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.objects import Log
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from bridge.flow_run.said import Said
from bridge.prefect_side.allowance import Allowance, take_coalesced
from bridge.watching.logs import FIRST_LINES, LAST_LINES, LogShipper
from bridge.watching.output import OutputLine

API = "http://prefect.test/api"
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def api() -> respx.MockRouter:
    with respx.mock(base_url=API, using="httpx", assert_all_called=False) as router:
        router.get("/csrf-token").respond(422, json={"detail": "CSRF protection is disabled."})
        yield router


@pytest.fixture
async def client(api: respx.MockRouter) -> AsyncIterator[PrefectClient]:
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        async with PrefectClient(API) as client:
            yield client


def posted(route: respx.Route) -> list[list[str]]:
    """The messages of each post that was answered with a success."""
    calls = [call for call in route.calls if call.optional_response is not None and call.response.is_success]
    return [[log["message"] for log in json.loads(call.request.content)] for call in calls]


def say(shipper: LogShipper, *texts: str, task_run_id: UUID | None = None) -> None:
    log = shipper.open(task_run_id or uuid4())
    for text in texts:
        log.write(OutputLine(text, "stdout", NOW))


OK = httpx.Response(201)
TROUBLES = {
    "500": httpx.Response(500),
    "502": httpx.Response(502),
    "429": httpx.Response(429, headers={"Retry-After": "1"}),
    "time-out": httpx.ReadTimeout("slow"),
    "torn connection": httpx.RemoteProtocolError("Server disconnected without sending a response."),
    "refused connection": httpx.ConnectError("refused"),
}


# Each waits as Prefect's client does; those that are slow are handled as 500 and a refused connection are.
ALIKE = {"502", "time-out", "torn connection"}


@pytest.mark.parametrize(
    "trouble", [pytest.param(each, marks=[pytest.mark.slow] if each in ALIKE else []) for each in TROUBLES]
)
async def test_lines_survive(api: respx.MockRouter, client: PrefectClient, trouble: str) -> None:
    route = api.post("/logs/").mock(side_effect=[TROUBLES[trouble], TROUBLES[trouble], OK])
    async with LogShipper(client, uuid4()) as shipper:
        say(shipper, "first", "second")
    assert route.call_count == 3
    assert posted(route) == [["first", "second"]]


async def test_retry_after_is_heeded(api: respx.MockRouter) -> None:
    """Prefect's client does that; here it is seen to."""
    times: list[datetime] = []

    def answer(request: httpx.Request) -> httpx.Response:
        times.append(datetime.now())
        return OK if len(times) > 1 else httpx.Response(429, headers={"Retry-After": "1"})

    api.post("/logs/").mock(side_effect=answer)
    async with PrefectClient(API) as client, LogShipper(client, uuid4()) as shipper:
        say(shipper, "once")
    assert len(times) == 2
    assert times[1] - times[0] >= timedelta(seconds=1)


async def test_what_is_refused_is_not_sent_for_ever(
    api: respx.MockRouter, client: PrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    route = api.post("/logs/").mock(side_effect=[httpx.Response(422, json={}), OK])
    shipper = LogShipper(client, uuid4())
    async with shipper:
        say(shipper, "refused")
        while not route.call_count:
            await turn()
        say(shipper, "taken")
    assert posted(route) == [["taken"]]
    assert "refused 1 log lines" in caplog.text


async def test_leaving_does_not_wait_for_ever(
    api: respx.MockRouter, client: PrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    api.post("/logs/").mock(side_effect=httpx.ConnectError("refused"))
    async with LogShipper(client, uuid4(), closing_seconds=0.5) as shipper:
        say(shipper, "a", "b", "c")
    assert "3 log lines" in caplog.text


async def test_a_minutes_allowance_carries_any_number_of_lines(api: respx.MockRouter, client: PrefectClient) -> None:
    route = api.post("/logs/").mock(return_value=OK)
    one, other = uuid4(), uuid4()
    texts = [f"line {number}" for number in range(5000)]
    async with LogShipper(client, uuid4(), allowance=Allowance(10)) as shipper:
        say(shipper, *texts, task_run_id=one)
        say(shipper, "beside", task_run_id=other)
    records = [record for post in posted(route) for record in post]
    assert len(records) <= 10
    lines = [line for record in records for line in record.split("\n")]
    assert [line for line in lines if line != "beside"] == texts
    assert all(len(record) <= 25_000 for record in records)


def test_allowance_comes_back_with_time() -> None:
    now = [0.0]
    allowance = Allowance(3, lambda: now[0])
    allowance.use(2)
    now[0] = 30.0
    allowance.use(1)
    assert (allowance.left(), allowance.seconds()) == (0, 30.0)
    now[0] = 60.0
    assert (allowance.left(), allowance.seconds()) == (2, 30.0)


def test_lines_without_a_record_stay() -> None:
    runs = [uuid4(), uuid4()]
    waiting = deque(
        LogCreate(name="x", level=20, message=text, timestamp=NOW, flow_run_id=runs[0], task_run_id=run)
        for text, run in (("a", runs[0]), ("b", runs[0]), ("c", runs[1]), ("d", runs[0]))
    )
    assert [record.message for record in take_coalesced(waiting, 1, 1000)] == ["a\nb"]
    assert [line.message for line in waiting] == ["c", "d"]


KEY = "zenml-attempt"


def logs_of(route: respx.Route) -> list[Log]:
    """What Prefect has after these posts."""
    return [
        Log(**record) for call in route.calls if call.response.is_success for record in json.loads(call.request.content)
    ]


@pytest.mark.parametrize("coalesced", [False, True])
async def test_lines_that_are_there_are_not_sent_again(
    api: respx.MockRouter, client: PrefectClient, coalesced: bool
) -> None:
    """A second process reads the output from its start; the first one was killed in the middle of it."""
    route = api.post("/logs/").mock(return_value=OK)
    task_run_id, allowance = uuid4(), Allowance(2) if coalesced else None

    async def read(shipper: LogShipper, *texts: str) -> None:
        log = shipper.open(task_run_id)
        log.comes_from(KEY, "sb-1", None)
        for text in texts:
            log.write(OutputLine(text, "stdout", NOW))
        log.close()

    async with LogShipper(client, uuid4(), allowance=allowance) as first:
        await read(first, "a", "twice", "", "twice")
    said = Said()
    for log in logs_of(route):
        said.add(log)
    assert said.sandboxes == {KEY: "sb-1"}
    before = len(posted(route))
    async with LogShipper(client, uuid4()) as second:
        second.known.update(said.lines)
        # What two streams say comes in another order when it is read again.
        await read(second, "twice", "a", "", "twice", "twice", "b")
        await read(second, "a")  # the next sandbox of that attempt would have another key; known lines count once
    assert [line for post in posted(route)[before:] for line in post] == ["twice", "b", "Output of sandbox sb-1", "a"]


async def test_the_end_of_a_long_output_is_not_sent_again(api: respx.MockRouter, client: PrefectClient) -> None:
    route = api.post("/logs/").mock(return_value=OK)
    texts = [f"line {number}" for number in range(FIRST_LINES + 2 * LAST_LINES)]
    for complete in (True, False):
        said = Said()
        for log in logs_of(route):
            said.add(log)
        before = len(logs_of(route))
        async with LogShipper(client, uuid4()) as shipper:
            shipper.known.update(said.lines)
            log = shipper.open(uuid4())
            log.comes_from(KEY, "sb-1", None)
            for text in texts:
                log.write(OutputLine(text, "stdout", NOW))
            log.close()
        new = len(logs_of(route)) - before
        assert new == (1 + FIRST_LINES + 1 + LAST_LINES if complete else 0)


async def test_delivered_means_that_prefect_has_it(api: respx.MockRouter, client: PrefectClient) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.set()
        await answered.wait()
        return OK

    route = api.post("/logs/").mock(side_effect=answer)
    async with LogShipper(client, uuid4()) as shipper:
        log = shipper.open(uuid4())
        log.write(OutputLine("last", "stdout", NOW))
        waiting = asyncio.ensure_future(log.delivered())
        await asyncio.wait_for(asked.wait(), 4)
        for _ in range(20):
            await turn()
        assert not waiting.done()
        answered.set()
        await asyncio.wait_for(waiting, 4)
        assert posted(route) == [["last"]]
        await log.delivered()


async def turn() -> None:
    """Let other tasks run."""

    await asyncio.sleep(0)
