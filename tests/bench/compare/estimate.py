"""How long what is missing will take, from what earlier measurements took: so that a run can be planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tests.bench.compare.scenarios import COLD_STARTS, Cell, scenario

AROUND_SECONDS = 8.0
"""A measurement's process, its imports, and waiting for sandboxes and processors: beside the call itself."""
YARDSTICK = "chain 20"
"""What tells how long a scenario takes that was never run: the same way's seconds for each of these steps."""
UNKNOWN_SECONDS = 60.0

Measured = Mapping[Cell, Sequence[Mapping[str, Any]]]


def seconds(cell: Cell, measured: Measured) -> float:
    """How long measuring it once will take, all in all."""
    first = scenario(cell.scenario).after
    calls = _call(cell, measured)
    if first is not None:
        before = _call(Cell(first, cell.way, cell.cold_start), measured)
        calls = before + (calls if cell in measured else before)
    return calls + AROUND_SECONDS


def minutes(wanted: Sequence[Cell], measured: Measured) -> float:
    """How long all of them will take, one after the other."""
    return sum(seconds(cell, measured) for cell in wanted) / 60


def _call(cell: Cell, measured: Measured) -> float:
    at_any = [Cell(cell.scenario, cell.way, cold_start) for cold_start in (cell.cold_start, *COLD_STARTS)]
    for known in at_any:
        if known in measured:
            return median(each["figures"]["wall_s"] for each in measured[known])
    if cell.scenario == YARDSTICK:
        return UNKNOWN_SECONDS
    chain, this = scenario(YARDSTICK), scenario(cell.scenario)
    side_by_side = 2 if this.pipeline == "fan_out" else 1  # as far as two cores go
    return _call(Cell(YARDSTICK, cell.way, cell.cold_start), measured) * this.steps / chain.steps / side_by_side
