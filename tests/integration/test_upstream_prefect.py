"""What of Prefect's inside this package relies on still does what it is relied on for, on every supported Prefect."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.integration.lab import Lab

PACKAGE = Path(__file__).resolve().parents[2] / "bridge"
PRIVATE = (
    *("prefect.flow_engine", "prefect.task_engine", "prefect.utilities.engine", "prefect.telemetry", "prefect._"),
    "prefect.server",
)


def test_private_names_are_in_one_file() -> None:
    users = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for name in PRIVATE
        if re.search(rf"^\s*(from|import) {re.escape(name)}", path.read_text(), re.MULTILINE)
    }
    assert users == {"upstream_prefect.py"}


def test_dates_of_a_cron_expression() -> None:
    """As the server reckons them, where one without a date stops the scheduler."""
    from prefect.server.schemas.schedules import CronSchedule

    from bridge.upstream_prefect import ever_comes

    now = datetime(2026, 3, 20, tzinfo=timezone.utc)
    assert ever_comes("0 0 29 2 *", now)
    assert asyncio.run(CronSchedule(cron="0 0 29 2 *").get_dates(1, now))
    assert not ever_comes("0 0 30 2 *", now)
    with pytest.raises(Exception, match="failed to find next date"):
        asyncio.run(CronSchedule(cron="0 0 30 2 *").get_dates(1, now))


def test_they_do_what_they_are_used_for(lab: Lab) -> None:
    """A flow run that exists runs; task runs follow cancelled ones; one that waits for a retry is ended; one that
    another process began goes on."""
    from prefect import Task, flow
    from prefect.cache_policies import NO_CACHE
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State
    from prefect.context import TaskRunContext
    from prefect.states import Cancelled, Completed, Failed

    from bridge.own_loop import on_own_loop
    from bridge.upstream_prefect import report_task_run_state, run_existing_flow_run, run_task_after

    ids = {"first": uuid4(), "second": uuid4(), "third": uuid4()}

    async def call(name: str, function, above: list[UUID], before: int = 0, **options):  # type: ignore[no-untyped-def]
        task = Task(function, name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False, **options)
        return await run_task_after(task, ids[name], above, attempts_before=before)

    async def core() -> None:
        async def cancelled(upstream: tuple[()]) -> State[None]:
            return Cancelled(name="NotRun", message="never")

        assert (await call("first", cancelled, [])).name == "NotRun"

        async def completed(upstream: tuple[()]) -> State[None]:
            return Completed(name="Cached")

        assert (await call("second", completed, [ids["first"]])).name == "Cached"

        async def completed_again(upstream: tuple[()]) -> State[None]:
            return Completed(name="Again")

        assert (await call("second", completed_again, [ids["first"]], before=1)).name == "Again"
        task_runs = []
        failed_once = asyncio.Event()

        async def failing(upstream: tuple[()]) -> State[None]:
            context = TaskRunContext.get()
            assert context is not None
            task_runs.append(context.task_run)
            failed_once.set()
            return Failed(message="once")

        waiting = asyncio.ensure_future(
            call("third", failing, [ids["first"], ids["second"]], retries=1, retry_delay_seconds=[300])
        )
        await failed_once.wait()
        while task_runs[0].state.name != "AwaitingRetry":  # noqa: ASYNC110  # the engine tells nobody
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        report_task_run_state(task_runs[0], Cancelled(message="ended from outside"))

    @flow(name="upstream-check", persist_result=False)
    def check(marker: str) -> State[None]:
        on_own_loop(core)
        return Completed(name="Checked")

    with get_client(sync_client=True) as client:
        made = client.create_flow_run(check, parameters={"marker": "x"})
    assert run_existing_flow_run(check, made, {"marker": "x"}).name == "Checked"
    flow_run, task_runs = lab.read_flow_run(made.id)
    assert flow_run.state.name == "Checked"
    states = {name: (run.id, run.state.name) for name, run in task_runs.items()}
    assert states == {
        "first": (ids["first"], "NotRun"),
        "second": (ids["second"], "Again"),
        "third": (ids["third"], "Cancelled"),
    }
    assert task_runs["second"].run_count == 2
    inputs = {given.id for given in task_runs["third"].task_inputs["upstream"]}
    assert inputs == {ids["first"], ids["second"]}
