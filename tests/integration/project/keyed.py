"""A step whose cache key only the user's code knows. A module of its own: ZenML looks for its function's source root
when it is imported, which must be the tests' by then."""

from __future__ import annotations

import os

from shapes import trace
from zenml import pipeline, step
from zenml.config.cache_policy import CachePolicy

ASKED: list[int] = []
"""The process, each time that ``of_this_kind`` was asked in it."""


def of_this_kind() -> str:
    """A part of the step's cache key."""
    ASKED.append(os.getpid())
    return "this kind"


@step(cache_policy=CachePolicy(cache_func=of_this_kind), enable_cache=True)
def cacheable_by_its_own_key(folder: str, value: int) -> int:
    trace(folder, "begin")
    return value


@pipeline
def cached_by_its_own_key(folder: str, value: int) -> None:
    cacheable_by_its_own_key(folder, value, id="own_key")
