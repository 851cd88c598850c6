"""Everything is read, in order and once, however many pages it takes; an API that is away is asked again."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import pytest

from bridge.prefect_side.prefect_pages import PAGE, each, each_patiently


class Shelf:
    """As many numbers, read as Prefect's client reads objects; the API is away from the requests of these numbers."""

    def __init__(self, size: int, away: Sequence[int] = ()) -> None:
        self._numbers = range(size)
        self._away = away
        self.asked = 0

    def read(self, *, limit: int, offset: int) -> Sequence[int]:
        self.asked += 1
        if self.asked in self._away:
            raise httpx.ConnectError("away")
        return self._numbers[offset : offset + limit]

    async def aread(self, *, limit: int, offset: int) -> Sequence[int]:
        return self.read(limit=limit, offset=offset)


SIZES = [(0, 1), (1, 1), (PAGE - 1, 1), (PAGE, 2), (2 * PAGE + 7, 3)]


@pytest.mark.parametrize(("size", "requests"), SIZES)
async def test_all_of_it_is_read(size: int, requests: int) -> None:
    shelf, other = Shelf(size), Shelf(size)
    assert list(each(shelf.read)) == list(range(size))
    assert [number async for number in each_patiently(other.aread)] == list(range(size))
    assert shelf.asked == other.asked == requests


async def test_a_page_is_asked_for_again_while_the_api_is_away() -> None:
    shelf = Shelf(PAGE + 1, away=[2])
    assert [number async for number in each_patiently(shelf.aread)] == list(range(PAGE + 1))
    assert shelf.asked == 3


def test_who_does_not_wait_hears_that_the_api_is_away() -> None:
    with pytest.raises(httpx.ConnectError):
        list(each(Shelf(PAGE + 1, away=[2]).read))
