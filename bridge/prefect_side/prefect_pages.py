"""All that Prefect's API knows of something, of which it tells a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from bridge.prefect_side.outage import patiently

PAGE = 200
"""Most objects that Prefect's API returns at once."""

T = TypeVar("T")


def each(read: Callable[..., Sequence[T]]) -> Iterator[T]:
    """Yield all that ``read(limit=…, offset=…)`` returns, page by page. Raises what it raises."""
    offset = 0
    while True:
        page = read(limit=PAGE, offset=offset)
        yield from page
        offset += len(page)
        if len(page) < PAGE:
            return


async def each_patiently(read: Callable[..., Awaitable[Sequence[T]]]) -> AsyncIterator[T]:
    """Yield all that ``read(limit=…, offset=…)`` returns, page by page; an API that is away is asked again.

    Raises what Prefect's client raises.
    """
    offset = 0
    while True:
        page = await patiently(partial(read, limit=PAGE, offset=offset))
        for one in page:
            yield one
        offset += len(page)
        if len(page) < PAGE:
            return
