"""The lease of a sandbox: what counts as a sign of life, and what time isn't counted."""

from __future__ import annotations

from datetime import datetime, timezone

from hypothesis import given
from hypothesis import strategies as st

from bridge.cleanup.lease import Lease, age, grace, period

TIMEOUT = 100.0


def test_it_runs_from_the_beginning_where_no_flow_ever_spoke() -> None:
    lease = Lease(TIMEOUT, began=0.0)
    assert not lease.seen("", 12.5)
    assert not lease.seen("", 99.0)
    assert lease.seen("", 125.0)


def test_every_new_sign_renews_it_and_an_old_one_doesn_t() -> None:
    lease = Lease(TIMEOUT, began=0.0)
    assert not lease.seen("a", 50.0)
    assert not lease.seen("b", 120.0)
    assert not lease.seen("b", 232.0)
    assert lease.seen("b", 232.5)
    assert not lease.seen("c", 233.0)


def test_time_in_which_nobody_could_be_asked_isn_t_counted() -> None:
    lease = Lease(TIMEOUT, began=0.0)
    assert not lease.seen("a", 0.0)
    lease.unanswered(1000.0)
    lease.unanswered(2000.0)
    assert not lease.seen("a", 2112.0)
    assert lease.seen("a", 2112.5)


def test_nor_is_time_in_which_an_answer_was_waited_for() -> None:
    lease = Lease(TIMEOUT, began=0.0)
    assert not lease.seen("a", 0.0)
    assert not lease.seen("a", 612.0, waited=500.0)
    assert lease.seen("a", 612.5)


@given(st.floats(0, 20 * TIMEOUT), st.floats(0, 1, exclude_max=True), st.floats(0, period(TIMEOUT)))
def test_a_sandbox_outlives_its_flow_for_the_timeout_and_a_quarter_at_most(
    died: float, phase: float, late: float
) -> None:
    """Whenever the flow dies between two signs, and however the looks of the sandbox fall between them."""
    every = period(TIMEOUT)
    lease, look, signs = Lease(TIMEOUT, began=0.0), late, phase * every
    while not lease.seen(str((min(look, died) - signs) // every), look):
        look += every
    assert TIMEOUT <= look - max(died, late) <= 1.25 * TIMEOUT + 1e-6


@given(st.lists(st.tuples(st.floats(0.1, 2 * period(TIMEOUT)), st.booleans()), max_size=60))
def test_a_flow_that_renews_in_time_is_never_taken_for_gone(looks: list[tuple[float, bool]]) -> None:
    """However its looks and outages fall: the flow renews in every period, and at once after an outage."""
    lease, now, renewed = Lease(TIMEOUT, began=0.0), 0.0, 0.0
    for pause, answered in looks:
        now += pause
        if not answered:
            lease.unanswered(now)
            continue
        if now - renewed >= period(TIMEOUT):
            renewed = now
        assert not lease.seen(str(renewed), now)


def test_how_old_a_sign_is() -> None:
    now = datetime(2026, 11, 24, 12, 0, 30, tzinfo=timezone.utc)
    assert age("2026-11-24T12:00:00.000+00:00", now) == 30.0
    assert age("", now) is None
    assert grace(1800) == 2250
