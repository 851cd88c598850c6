"""What the package warns of is said once: before, during and after a run that was shown in a terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from bridge.watching import terminal
from bridge.watching.own_words import warn_in_run_logs


class Heard(logging.Handler):
    """What reaches the root logger, as a program's own handler there would see it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[Heard]:
    root, ours, handler = logging.getLogger(), logging.getLogger("bridge"), Heard()
    before = list(ours.handlers), ours.propagate
    ours.handlers, ours.propagate = [], True
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    ours.handlers, ours.propagate = before


def test_a_warning_outside_of_runs_is_said_once(heard: Heard) -> None:
    logger = logging.getLogger("bridge.submitting.waiting")
    logger.warning("before")
    with terminal.show_run():
        warn_in_run_logs()
    logger.warning("after")
    with terminal.show_run():
        warn_in_run_logs()
    logger.warning("after the second")
    assert heard.messages == ["before", "after", "after the second"]


def test_so_is_one_in_a_workers_process(heard: Heard) -> None:
    warn_in_run_logs()
    logging.getLogger("bridge.submitting.waiting").warning("here")
    assert heard.messages == ["here"]
