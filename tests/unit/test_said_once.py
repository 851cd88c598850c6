"""What was said is not said again, whoever said it."""

from __future__ import annotations

import logging

import pytest

from bridge.said_once import SaidOnce


def test_each_warning_is_given_once_and_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    once = SaidOnce(["known"])
    with caplog.at_level(logging.WARNING):
        once.warn(["known", "100 %s", "100 %s"], logging.getLogger("one"))
        once.warn(["new", "100 %s"], logging.getLogger("another"))
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("one", "100 %s"), ("another", "new")]
