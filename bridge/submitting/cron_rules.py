"""A cron expression as recurrence rules of RFC 5545, which may have a start and an end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from cronsim import CronSim, CronSimError

from bridge.errors import InvalidSettings

_WEEKDAYS = ("SU", "MO", "TU", "WE", "TH", "FR", "SA", "SU")
SHORTHANDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""What may stand for a cron expression, and for which."""


def rules_of_cron(cron: str, written: str | None = None) -> list[str]:
    """Return the rules, each without start and end: ``FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0``.

    Two where cron wants the day of the month *or* the day of the week. Raises ``InvalidSettings``, which shows the
    expression as it was ``written``, for one that can't be read or isn't about days of the week and the month.
    """
    *others, weekdays = SHORTHANDS.get(cron.lower(), cron).split()
    # `1/2` ends with Saturday, as in Prefect's cron; the 7 of this one would be Sunday once more.
    weekdays = re.sub(r"(?<![-\w])(\w+)/", r"\1-6/", weekdays)
    try:
        fields = CronSim(" ".join([*others, weekdays]), datetime(2000, 1, 1))
    except CronSimError as error:
        raise InvalidSettings(
            "cron_expression",
            written or cron,
            f"with a start_time in the future or an end_time it becomes a recurrence rule, and it can't: {error}",
            "Use plain fields, or leave start_time and end_time out",
        ) from None
    minutes, hours = fields.minutes, fields.hours
    time = [*_by("BYHOUR", hours, range(24)), *_by("BYMINUTE", minutes, range(60)), "BYSECOND=0"]
    frequency = "FREQ=DAILY"
    if len(hours) == 24 and len(minutes) == 60:
        frequency = "FREQ=MINUTELY"
    elif len(hours) == 24:
        frequency = "FREQ=HOURLY"
    base = [frequency, *_by("BYMONTH", fields.months, range(1, 13))]
    of_month = _by("BYMONTHDAY", fields.days, range(1, 32))
    of_week = _by_weekday(fields.weekdays, written or cron)
    either = of_month and of_week  # also for `*/2`, where some crons want both: Prefect's is none of them
    chosen = [of_month, of_week] if either else [[*of_month, *of_week]]
    return [";".join([*base, *day, *time]) for day in chosen]


def _by(name: str, values: set[int], everything: range) -> list[str]:
    numbers = sorted(-1 if value == CronSim.LAST else value for value in values)
    if CronSim.LAST_WEEKDAY in numbers:
        raise InvalidSettings(
            "cron_expression",
            "LW",
            "the last weekday of a month has no recurrence rule",
            "Use plain days, or leave start_time and end_time out",
        )
    if list(everything) == numbers:
        return []
    return [f"{name}={','.join(map(str, numbers))}"]


def _by_weekday(values: Iterable[int | tuple[int, int]], written: str) -> list[str]:
    plain = {value % 7 for value in values if isinstance(value, int)}
    if any(not isinstance(value, int) for value in values):
        raise InvalidSettings(
            "cron_expression",
            written,
            "`#` and `L` in the day of the week have no simple recurrence rule",
            "Use plain days, or leave start_time and end_time out",
        )
    if len(plain) == 7:
        return []
    return [f"BYDAY={','.join(_WEEKDAYS[day] for day in sorted(plain))}"]
