"""What an end costs stands in `docs/semantics.md` as the tests have it, end by end and in both modes."""

from __future__ import annotations

import re

import pytest

from bridge.flow_run.outcome import Cost
from tests.docs.test_readme import ROOT
from tests.integration.ends import ENDS

COSTS = {
    "own retry": Cost.OWN_RETRY,
    "infrastructure retry": Cost.INFRASTRUCTURE_RETRY,
    "nothing is tried again": Cost.EVERYTHING,
    "nothing": Cost.NOTHING,
}
"""How a cell begins; the longer one comes first where two begin alike."""
NO_ENDS = {
    "Modal can't be reached, refuses creates for coming too fast",
    "infrastructure retries used up",
    "refused: unknown image, wrong token, malformed request",
    "cut off: ZenML's token of the run died before the step had ended",
    "stopped: the run was cancelled, or a sibling failed under FAIL_FAST",
}
"""Rows about what is no end of an attempt that could be tried again: the page's last table names the tests of each."""


def table() -> dict[str, tuple[str, str]]:
    """The first table of the page: by row its cells for `per_step` and for `pipeline` mode."""
    text = (ROOT / "docs" / "semantics.md").read_text()
    head, _, rows = text.partition("| how an attempt ended | per_step | pipeline | ZenML's step run |\n")
    assert "|" not in head, "the page's first table is another one"
    lines = rows.partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {how: (per_step, pipeline) for how, per_step, pipeline, _ in cells}


def cost(cell: str) -> Cost | None:
    begins = re.match("|".join(COSTS), cell)
    return COSTS[begins[0]] if begins else None


@pytest.mark.parametrize("end", ENDS)
def test_an_end_costs_what_the_page_says(end: str) -> None:
    expected = ENDS[end]
    per_step, pipeline = table()[expected.row]
    assert (cost(per_step), cost(pipeline)) == (expected.per_step, expected.pipeline)


def test_the_page_has_no_end_that_the_tests_lack() -> None:
    assert set(table()) == {end.row for end in ENDS.values()} | NO_ENDS
