"""A pipeline whose artifacts are far away, under credentials that don't last."""

from __future__ import annotations

import time

from shapes import trace
from zenml import pipeline, step


@step(enable_cache=False)
def make(folder: str) -> list[int]:
    """Writes to the store."""
    trace(folder, "begin")
    return list(range(1000))


@step(enable_cache=False)
def outlast(folder: str, numbers: list[int], seconds: float) -> int:
    """Reads with credentials that are over when it writes."""
    trace(folder, "begin")
    time.sleep(seconds)
    return sum(numbers)


@step(enable_cache=False)
def last(folder: str, total: int) -> int:
    """Reads what was written then."""
    trace(folder, "begin")
    return total + 1


@pipeline
def stored_far(folder: str, seconds: float = 0) -> None:
    """A chain."""
    last(folder, outlast(folder, make(folder), seconds))
