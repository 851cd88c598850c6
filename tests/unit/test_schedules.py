"""What Prefect makes of a translated schedule, dates and all, against what the ZenML schedule says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.server.schemas.schedules import CronSchedule as ServerCron
from prefect.server.schemas.schedules import IntervalSchedule as ServerInterval
from prefect.server.schemas.schedules import RRuleSchedule as ServerRRule

from bridge.errors import InvalidSettings
from bridge.submitting.schedules import SOONEST, prefect_schedule

UTC = timezone.utc
NOW = datetime(2026, 3, 20, 12, 0, 30, tzinfo=UTC)
"""Nine days before Europe turns its clocks."""


@dataclass
class Given:
    """A ZenML schedule as the store has it: naive times are UTC."""

    cron_expression: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    interval_second: timedelta | None = None
    run_once_start_time: datetime | None = None
    catchup: bool = False


async def dates(schedule: CronSchedule | IntervalSchedule | RRuleSchedule, count: int = 40) -> list[datetime]:
    """What Prefect's scheduler makes of it."""
    server: Any = {CronSchedule: ServerCron, IntervalSchedule: ServerInterval, RRuleSchedule: ServerRRule}[
        type(schedule)
    ]
    found = await server(**schedule.model_dump()).get_dates(count, start=NOW)
    return [datetime.fromtimestamp(date.timestamp(), UTC) for date in found]  # pendulum where Prefect uses it


CRONS = [
    "30 9 * * 1-5",
    "*/15 * * * *",
    "* * * * *",
    "0 * * * *",
    "7,37 */6 * * *",
    "0 12 31 * *",
    "0 9 L * *",
    "15 3 1,15 * *",
    "15 3 1,15 * 5",
    "0 9 */2 * 1",
    "0 9 1 * */2",
    "0 9 * * 1/2",
    "0 9 * * MON/3,2",
    "0 9 1-20/3 * 1-5/2",
    "0 0 * 1-6/2 *",
    "0 0 1 JAN *",
    "5 4 * * SUN",
    "5 4 * * 7",
    "0 8-18/2 * 4,5 mon-fri",
    "@daily",
    "@hourly",
    "@weekly",
]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns"])
@pytest.mark.parametrize("cron", CRONS)
async def test_a_cron_with_an_end_runs_when_the_cron_runs(cron: str, zone: str) -> None:
    written = cron if zone == "UTC" else f"CRON_TZ={zone} {cron}"
    plain = prefect_schedule(Given(written), NOW)
    assert isinstance(plain, CronSchedule)
    end = datetime(2028, 3, 1)
    ended = prefect_schedule(Given(written, end_time=end), NOW)
    assert isinstance(ended, RRuleSchedule)
    expected = [date for date in await dates(plain) if date <= end.replace(tzinfo=UTC)]
    assert await dates(ended, len(expected)) == expected


async def test_the_clocks_are_turned_under_a_cron_with_an_end() -> None:
    ended = prefect_schedule(Given("CRON_TZ=Europe/Berlin 0 9 * * *", end_time=datetime(2026, 4, 10)), NOW)
    found = await dates(ended)
    assert {date.astimezone(ZoneInfo("Europe/Berlin")).hour for date in found} == {9}
    assert {date.hour for date in found} == {7, 8}


@pytest.mark.parametrize("cron", ["0 9 * * *", "0 9 1 * 1"])
async def test_a_cron_begins_at_its_start_and_ends_at_its_end(cron: str) -> None:
    start, end = datetime(2026, 4, 5, 10), datetime(2026, 5, 4, 9)
    found = await dates(prefect_schedule(Given(cron, start_time=start, end_time=end), NOW))
    assert start.replace(tzinfo=UTC) <= found[0] < found[-1] == end.replace(tzinfo=UTC)


async def test_a_start_that_has_passed_changes_nothing_of_a_cron() -> None:
    assert prefect_schedule(Given("0 9 * * *", start_time=datetime(2020, 1, 1)), NOW) == prefect_schedule(
        Given("0 9 * * *"), NOW
    )


@pytest.mark.parametrize("start", [datetime(2026, 3, 20, 11, 59), datetime(2026, 3, 21, 1, 7)])
@pytest.mark.parametrize("end", [None, datetime(2026, 3, 22)])
async def test_an_interval_counts_from_its_start(start: datetime, end: datetime | None) -> None:
    every = timedelta(hours=2)
    schedule = prefect_schedule(Given(interval_second=every, start_time=start, end_time=end), NOW)
    found = await dates(schedule, 10)
    assert found[0] >= max(NOW, start.replace(tzinfo=UTC))
    assert all((date - start.replace(tzinfo=UTC)) % every == timedelta() for date in found)
    assert all(after - before == every for before, after in pairwise(found))
    assert found[0] - max(NOW, start.replace(tzinfo=UTC)) < every
    assert end is None or found[-1] <= end.replace(tzinfo=UTC)


@pytest.mark.parametrize("every", [timedelta(minutes=1), timedelta(days=1, seconds=7)])
async def test_an_interval_with_an_end_that_began_long_ago_is_counted_from_now(every: timedelta) -> None:
    """Prefect's server would walk from its start to now, each minute."""
    start, end = datetime(2023, 1, 1, 5, 0, 13, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    schedule = prefect_schedule(Given(interval_second=every, start_time=start, end_time=end), NOW)
    assert isinstance(schedule, RRuleSchedule)
    first = schedule.to_rrule()[0].astimezone(UTC)
    assert timedelta() <= first - NOW < every
    assert (first - start) % every == timedelta()
    assert await dates(schedule, 3) == [first, first + every, first + 2 * every]


async def test_nothing_runs_a_moment_before_its_start() -> None:
    moment = datetime(2026, 7, 1, 8, 30, 15, 700_000)
    [found] = await dates(prefect_schedule(Given(run_once_start_time=moment), NOW))
    assert timedelta() <= found - moment.replace(tzinfo=UTC) < timedelta(seconds=1)


async def test_once() -> None:
    moment = datetime(2026, 7, 1, 8, 30, 15)
    schedule = prefect_schedule(Given(run_once_start_time=moment), NOW)
    assert await dates(schedule) == [moment.replace(tzinfo=UTC)]


async def test_a_single_start_that_is_too_near_for_the_scheduler_is_put_off() -> None:
    schedule = prefect_schedule(Given(run_once_start_time=datetime(2026, 3, 20, 12, 0, 31)), NOW)
    assert await dates(schedule) == [NOW + SOONEST]


NEVER = [
    (Given("0 0 30 2 1"), "cron_expression='0 0 30 2 1': Prefect finds no date for it"),  # though Mondays come
    (Given("0 0 30 2 *"), "cron_expression='0 0 30 2 *': Prefect finds no date for it"),
    (Given("CRON_TZ=Europe/Berlin 0 0 31 4,6 *"), "0 0 31 4,6 *': Prefect finds no date for it"),
    (Given("0 0 30 2 *", end_time=datetime(2099, 1, 1)), "cron_expression='0 0 30 2 *': Prefect finds no date for it"),
    (
        Given("0 0 30 2 *", start_time=datetime(2027, 1, 1)),
        "cron_expression='0 0 30 2 *': Prefect finds no date for it",
    ),
    (
        Given("0 9 * * *", start_time=datetime(2026, 5, 1), end_time=datetime(2026, 4, 1)),
        "end_time='2026-04-01 00:00:00+00:00': the first run would come after it",
    ),
    (Given("0 9 * * 1", end_time=datetime(2026, 3, 21)), "end_time='2026-03-21 00:00:00+00:00'"),
    (
        Given(interval_second=timedelta(hours=1), start_time=datetime(2026, 5, 1), end_time=datetime(2026, 4, 1)),
        "end_time='2026-04-01 00:00:00+00:00': the first run would come after it",
    ),
]


@pytest.mark.parametrize(("given", "says"), NEVER)
def test_what_would_never_run_is_refused_by_name(given: Given, says: str) -> None:
    """Prefect's scheduler plans no run of any schedule of a deployment that has a cron without a date."""
    with pytest.raises(InvalidSettings) as caught:
        prefect_schedule(given, NOW)
    assert says in str(caught.value)


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 0 31 1,4 *", "0 0 30 3 1"])
async def test_what_runs_seldom_is_no_mistake(cron: str) -> None:
    assert await dates(prefect_schedule(Given(cron), NOW), 1)
    assert await dates(prefect_schedule(Given(cron, end_time=datetime(2036, 1, 1)), NOW), 1)


@pytest.mark.parametrize(
    ("given", "field", "fix"),
    [
        (Given("0 9 * * *", catchup=True), "catchup=True", "Take catchup=True off"),
        (Given("0 9 * *"), "cron_expression='0 9 * *'", "five fields"),
        (Given("0 0 9 * * *"), "cron_expression='0 0 9 * * *'", "five fields"),
        (Given("CRON_TZ=Europe/Berlin 0 9 * * * 0 2030"), "0 9 * * * 0 2030'", "five fields"),
        (Given("61 9 * * *"), "cron_expression='61 9 * * *'", "five fields"),
        (Given("CRON_TZ=Mars/Crater 0 9 * * *"), "cron_expression='CRON_TZ=Mars/Crater", "Europe/Berlin"),
        (Given("0 9 * * *", end_time=datetime(2026, 3, 1)), "end_time=", "later end"),
        (Given("0 9 * * 5#2", end_time=datetime(2027, 3, 1)), "cron_expression='0 9 * * 5#2'", "plain days"),
        (Given(run_once_start_time=datetime(2026, 3, 20, 11)), "run_once_start_time=", "later one"),
        (
            Given(
                interval_second=timedelta(seconds=90.5),
                start_time=datetime(2026, 3, 1),
                end_time=datetime(2026, 4, 1),
            ),
            "interval_second=",
            "Round it",
        ),
    ],
)
def test_what_prefect_cannot_do_is_refused_by_name(given: Given, field: str, fix: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        prefect_schedule(given, NOW)
    assert field in str(caught.value)
    assert fix in str(caught.value)
