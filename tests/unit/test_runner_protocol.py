"""What the protocol of a runner says of itself: whoever writes one, or calls one, has nothing else to go by."""

from __future__ import annotations

import inspect
import re

import pytest

from bridge import errors
from bridge.runners import base

PROTOCOLS = (
    *(base.Runner, base.Sandbox, base.AsksAhead, base.BuildsImages, base.CallsHosts),
    *(base.HasDashboard, base.HasPrices),
)
ONLY_ASK = {"poll", "output", "find", "running", "tagged", "by_id", "check", "costs", "prices"}
"""Methods that change nothing, so that nobody need ask whether they may be repeated."""
LEAVES = "__aexit__"
"""What leaving does, and that it raises nothing of its own, the protocol itself says."""


def reaches_the_runner(method: object) -> bool:
    """Whether it may have to ask somebody: it is asynchronous, or what it returns is."""
    return inspect.iscoroutinefunction(method) or "AsyncIterator" in str(getattr(method, "__annotations__", {}))


METHODS = [
    pytest.param(name, inspect.getdoc(method) or "", id=f"{protocol.__name__}.{name}")
    for protocol in PROTOCOLS
    for name, method in vars(protocol).items()
    if reaches_the_runner(method) and name != LEAVES
]


def test_each_method_is_looked_at() -> None:
    assert len(METHODS) >= 15
    assert {name for (name, _) in (one.values for one in METHODS)} > ONLY_ASK


@pytest.mark.parametrize(("name", "said"), METHODS)
def test_a_method_says_what_it_raises(name: str, said: str) -> None:
    _, raises, after = said.partition("Raises ")
    assert raises, "it doesn't say what it raises"
    named = re.findall(r"``([A-Z]\w+)``", after)
    assert named
    assert all(issubclass(getattr(errors, error), errors.BridgeError) for error in named)


@pytest.mark.parametrize(("name", "said"), METHODS)
def test_a_method_says_whether_it_may_be_repeated(name: str, said: str) -> None:
    assert name in ONLY_ASK or re.search(r"\b([Ii]dempotent|[Nn]ot idempotent)\b", said)
