"""What sandboxes cost, as Modal's API tells it: estimated, in US dollars, some minutes late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import modal

LONGEST = timedelta(days=7)
"""Longest time range of one question (modal/app.py, ``App.sandboxes.stats``); it begins on a full hour."""


async def costs_by_tag(app: modal.App, tags: Mapping[str, str], tag: str, since: datetime) -> dict[str | None, Decimal]:
    """Return what the app's sandboxes with all of ``tags`` cost since then, by their value of ``tag``.

    Empty on SDKs before 1.6, which can't ask. Raises what the SDK raises.
    """
    if not hasattr(app, "sandboxes"):
        return {}
    costs: dict[str | None, Decimal] = {}
    for begin, end in _ranges(since.astimezone(timezone.utc), datetime.now(timezone.utc)):
        groups = app.sandboxes.stats.aio(since=begin, until=end, group_by_tags=[tag], tags=dict(tags))
        async for group in groups:
            value = group.tags.get(tag)
            costs[value] = costs.get(value, Decimal(0)) + group.cost
    return costs


def _ranges(since: datetime, now: datetime) -> Iterator[tuple[datetime, datetime | None]]:
    begin = since.replace(minute=0, second=0, microsecond=0)
    while now - begin > LONGEST:
        yield begin, begin + LONGEST
        begin += LONGEST
    yield begin, None
