"""A ZenML schedule as a Prefect schedule: no clock but the one that is handed in, no network.

Prefect's cron and interval schedules know neither start nor end. Where a ZenML schedule has one, it becomes an rrule
(RFC 5545), which has both: ``DTSTART`` and ``UNTIL``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Protocol, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bridge.errors import InvalidSettings
from bridge.submitting.cron_rules import SHORTHANDS, rules_of_cron

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

    PrefectSchedule: TypeAlias = CronSchedule | IntervalSchedule | RRuleSchedule

SOONEST = timedelta(seconds=15)
"""Prefect's scheduler must have seen a moment before it comes, or it is missed; it looks every 5 s at new schedules."""
_TIME_ZONE = "CRON_TZ="
_FIVE_FIELDS = "Write five fields, as in `0 9 * * 1-5`"


class ZenMLSchedule(Protocol):
    """What is read of a ZenML schedule, as ZenML stores it: times without a time zone are UTC."""

    @property
    def cron_expression(self) -> str | None: ...
    @property
    def start_time(self) -> datetime | None: ...
    @property
    def end_time(self) -> datetime | None: ...
    @property
    def interval_second(self) -> timedelta | None: ...
    @property
    def run_once_start_time(self) -> datetime | None: ...
    @property
    def catchup(self) -> bool: ...


@dataclass(frozen=True)
class _Times:
    start: datetime | None
    end: datetime | None


def prefect_schedule(schedule: ZenMLSchedule, now: datetime) -> PrefectSchedule:
    """Translate a schedule. As ZenML has it, a cron expression counts more than an interval, an interval more than a
    single start.

    A cron expression is in UTC, or in the time zone that it begins with: ``CRON_TZ=Europe/Berlin 0 9 * * *``.

    Args:
        schedule: The schedule.
        now: The time, with a time zone.

    Raises ``InvalidSettings`` for what Prefect can't do or what would never run.
    """
    if schedule.catchup:
        raise InvalidSettings(
            "catchup",
            True,
            "Prefect doesn't run what a schedule missed",
            "Take catchup=True off the schedule; run the pipeline by hand for intervals that were missed",
        )
    times = _Times(_utc(schedule.start_time), _utc(schedule.end_time))
    if times.end is not None and times.end <= now:
        raise InvalidSettings("end_time", str(times.end), "it has passed already", "Set a later end, or none")
    if schedule.cron_expression:
        return _cron(schedule.cron_expression, times, now)
    if schedule.interval_second and times.start:
        return _interval(schedule.interval_second, times.start, times.end, now)
    once = _utc(schedule.run_once_start_time)
    if once is None:
        raise InvalidSettings("schedule", None, "it says nothing of when", "Give it a cron_expression")
    return _once(once, now)


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment.astimezone(timezone.utc) if moment else None
    return moment.replace(tzinfo=timezone.utc)


def _cron(expression: str, times: _Times, now: datetime) -> PrefectSchedule:
    from prefect.client.schemas.schedules import CronSchedule

    from bridge.upstream_prefect import ever_comes

    cron, zone = _cron_and_zone(expression)
    if len(cron.split()) != 5 and cron.lower() not in SHORTHANDS:
        # A sixth is a second: to Prefect if it comes last, to others if it comes first.
        raise InvalidSettings("cron_expression", expression, "it hasn't five fields", _FIVE_FIELDS)
    try:
        # Also where it becomes a rule: what Prefect doesn't take as cron is refused alike with and without an end.
        plain = CronSchedule(cron=cron, timezone=zone.key)
    except ValueError as error:
        raise InvalidSettings(
            "cron_expression",
            expression,
            f"Prefect doesn't take it ({_reason(error)})",
            _FIVE_FIELDS,
        ) from error
    if not ever_comes(cron, now.astimezone(zone)):
        # Prefect's API takes it, and its scheduler then plans no run of any schedule of the deployment.
        fix = "Name a day that one of its months has; `L` is the last one of each"
        raise InvalidSettings("cron_expression", expression, "Prefect finds no date for it", fix)
    if times.end is None and (times.start is None or times.start <= now):
        return plain
    rules = rules_of_cron(cron, expression)
    start = max(times.start or now, now)
    return _rrule(rules, start, times.end, zone)


def _cron_and_zone(expression: str) -> tuple[str, ZoneInfo]:
    if not expression.startswith(_TIME_ZONE):
        return expression, ZoneInfo("UTC")
    name, _, cron = expression.removeprefix(_TIME_ZONE).partition(" ")
    try:
        return cron.strip(), ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise InvalidSettings(
            "cron_expression", expression, f"there is no time zone {name!r}", "Use a name such as Europe/Berlin"
        ) from None


def _reason(error: ValueError) -> str:
    return str(error).replace("\n", " ")[:200]


def _interval(interval: timedelta, start: datetime, end: datetime | None, now: datetime) -> PrefectSchedule:
    from prefect.client.schemas.schedules import IntervalSchedule

    if end is None and start <= now:
        # An anchor in the future would not hold it back: Prefect counts from it in both directions.
        return IntervalSchedule(interval=interval, anchor_date=start)
    seconds = int(interval.total_seconds())
    if interval != timedelta(seconds=seconds) or seconds < 1:
        raise InvalidSettings(
            "interval_second",
            str(interval),
            "with a start_time in the future or an end_time it has to be whole seconds",
            "Round it",
        )
    if start < now:
        # Else Prefect's server walks from there to now each time that it plans, and answers nobody meanwhile.
        start += interval * -((start - now) // interval)
    return _rrule([f"FREQ=SECONDLY;INTERVAL={seconds}"], start, end, ZoneInfo("UTC"))


def _once(moment: datetime, now: datetime) -> PrefectSchedule:
    if moment <= now - SOONEST:
        raise InvalidSettings(
            "run_once_start_time", str(moment), "it has passed already", "Set a later one, or run without a schedule"
        )
    return _rrule(["FREQ=DAILY;COUNT=1"], max(moment, now + SOONEST), None, ZoneInfo("UTC"))


def _rrule(rules: list[str], start: datetime, end: datetime | None, zone: ZoneInfo) -> PrefectSchedule:
    from prefect.client.schemas.schedules import RRuleSchedule

    if start.microsecond:
        # A rule has whole seconds, and nothing runs before its start.
        start = start.replace(microsecond=0) + timedelta(seconds=1)
    # Prefect reads both times as local ones of the schedule's time zone (RRuleSchedule.to_rrule).
    begin = f"DTSTART:{start.astimezone(zone):%Y%m%dT%H%M%S}"
    until = f";UNTIL={end.astimezone(zone):%Y%m%dT%H%M%S}" if end is not None else ""
    made = RRuleSchedule(rrule="\n".join([begin, *(f"RRULE:{rule}{until}" for rule in rules)]), timezone=zone.key)
    if next(iter(made.to_rrule()), None) is None:
        fix = "Set a later end or an earlier start_time"
        raise InvalidSettings("end_time", str(end), "the first run would come after it", fix)
    return made
