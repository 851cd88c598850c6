"""Pipelines that break off, remember, or are run again."""

from __future__ import annotations

from shapes import add, cacheable, fail, fail_first, one
from zenml import pipeline
from zenml.enums import StepRuntime


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


@pipeline(dynamic=True)
def remembering_dynamic(folder: str, value: int = 1, runtime: StepRuntime = StepRuntime.INLINE) -> None:
    """As ``remembering``, its steps where the function runs or in sandboxes of their own."""
    made = cacheable.with_options(runtime=runtime)
    first = made(folder, 10, id="first")
    add.with_options(runtime=runtime)(folder, first, made(folder, value, id="other"), id="total")


@pipeline(dynamic=True)
def mended_dynamic(folder: str, value: int = 1, runtime: StepRuntime = StepRuntime.INLINE) -> None:
    """As ``mended``, likewise."""
    first = one.with_options(runtime=runtime)(folder, value, id="first")
    again = fail_first.with_options(runtime=runtime)(folder, id="again")
    add.with_options(runtime=runtime)(folder, first, again, id="last")
