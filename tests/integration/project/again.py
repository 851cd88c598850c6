"""Static pipelines that break off, remember, or are run again."""

from __future__ import annotations

from shapes import add, cacheable, fail, fail_first, one
from zenml import pipeline


@pipeline
def breaking(folder: str) -> None:
    """``bad``, with the longest chain below it, fails; ``beside`` has nothing to do with that."""
    before = one(folder, id="before")
    below = add(folder, fail(folder, before, id="bad"), id="below")
    add(folder, below, id="last")
    add(folder, add(folder, before, 10, id="beside"), id="beside_below")


@pipeline
def remembering(folder: str, value: int = 1) -> None:
    """``total`` is never remembered, the others are by the values that they are given."""
    first = cacheable(folder, 10, id="first")
    add(folder, first, cacheable(folder, value, id="other"), id="total")


@pipeline
def mended(folder: str, value: int = 1) -> None:
    """``again`` fails the first time that it is run."""
    first = one(folder, value, id="first")
    add(folder, first, fail_first(folder, id="again"), id="last")
