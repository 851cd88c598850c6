"""Who owns a run, fact by fact: never taken from a flow that may be at work, nor on a guess."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cleanup.ownership import OVER, Facts, FlowState, Judgement, Owner, judge, judge_caller, judge_idle

TIMEOUT = 100.0
TOLERANCE = 10.0
LONG = 136.0  # a quarter more than the timeout, the tolerance, and a bit
RUNNING = Facts(
    FlowState.RUNNING, since=0.0, began=True, elsewhere=True, sign=1.0, orphan_timeout=TIMEOUT, tolerance=TOLERANCE
)
NEVER = replace(RUNNING, began=False, sign=None)


def facts(**changes: object) -> Facts:
    return replace(RUNNING, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", list(FlowState))
def test_a_flow_that_gives_signs_of_life_keeps_its_run_whatever_prefect_says(state: FlowState) -> None:
    assert judge(facts(state=state, since=LONG, sign=TIMEOUT)).owner is Owner.FLOW


@pytest.mark.parametrize("state", [state for state in FlowState if state not in (FlowState.WAITING, FlowState.PAUSED)])
def test_a_flow_that_gives_none_any_more_loses_it(state: FlowState) -> None:
    assert judge(facts(state=state, sign=LONG)).owner is Owner.NOBODY


@pytest.mark.parametrize("state", [FlowState.WAITING, FlowState.PAUSED])
def test_a_flow_run_that_waits_to_go_on_keeps_it(state: FlowState) -> None:
    """However long, for a worker or an answer."""
    assert judge(facts(state=state, sign=10 * LONG, since=10 * LONG, elsewhere=True)).owner is Owner.FLOW


def test_one_that_goes_on_after_long_has_time_for_its_first_sign() -> None:
    """The last one is of the process that died, or paused, days ago."""
    goes_on = facts(state=FlowState.RUNNING, sign=10 * LONG, signed=False)
    assert judge(replace(goes_on, since=120.0)).owner is Owner.FLOW
    assert judge(replace(goes_on, since=131.0)).owner is Owner.NOBODY


def test_one_that_was_to_go_on_where_it_is_and_never_did_loses_it() -> None:
    """Whoever typed `modal-prefect resume` was killed before the flow run had begun."""
    waits = facts(state=FlowState.WAITING, sign=10 * LONG, elsewhere=False)
    assert judge(replace(waits, since=LONG - 5)).owner is Owner.FLOW
    assert judge(replace(waits, since=LONG)).owner is Owner.NOBODY
    assert judge(replace(waits, state=FlowState.PAUSED, since=LONG)).owner is Owner.FLOW


def test_the_clocks_of_two_machines_may_differ() -> None:
    assert judge(facts(sign=134.0)).owner is Owner.FLOW
    assert judge(facts(sign=134.0, tolerance=0.0)).owner is Owner.NOBODY
    assert judge(facts(sign=-50.0)).owner is Owner.FLOW


@pytest.mark.parametrize(
    ("state", "stopped"),
    [
        (FlowState.CANCELLED, True),
        (FlowState.CANCELLING, True),
        (FlowState.UNKNOWN, True),
        (FlowState.CRASHED, False),
        (FlowState.FAILED, False),
        (FlowState.COMPLETED, False),
        (FlowState.RUNNING, False),
    ],
)
def test_it_ends_as_its_flow_run_does(state: FlowState, stopped: bool) -> None:
    assert judge(facts(state=state, sign=LONG)).stopped is stopped


@pytest.mark.parametrize("state", sorted(OVER))
def test_a_flow_that_was_over_before_it_began_owns_nothing(state: FlowState) -> None:
    judged = judge(replace(NEVER, state=state))
    assert judged.owner is Owner.NOBODY
    assert "before it began" in judged.why


def test_a_flow_run_in_a_work_pool_may_wait_for_ever() -> None:
    assert judge(replace(NEVER, state=FlowState.WAITING, since=100 * LONG)).owner is Owner.FLOW
    here = replace(NEVER, state=FlowState.WAITING, elsewhere=False)
    assert judge(replace(here, since=LONG - 5)).owner is Owner.FLOW
    assert judge(replace(here, since=LONG)).owner is Owner.NOBODY


def test_what_nothing_tells_is_left_alone() -> None:
    assert judge(replace(NEVER, state=FlowState.UNKNOWN, since=LONG)).owner is Owner.UNCLEAR
    old = judge(replace(NEVER, began=True, since=LONG))
    assert (old.owner, "older releases" in old.why) == (Owner.UNCLEAR, True)
    assert judge(replace(NEVER, began=True, since=TIMEOUT)).owner is Owner.FLOW


def test_a_flow_that_ended_a_moment_ago_may_still_be_ending() -> None:
    silent = replace(NEVER, began=True, state=FlowState.FAILED)
    assert judge(replace(silent, since=TIMEOUT)).owner is Owner.FLOW
    assert judge(replace(silent, since=LONG)).owner is Owner.NOBODY


@given(
    st.sampled_from(FlowState), st.floats(0, 1e6), st.booleans(), st.booleans(), st.floats(0, TIMEOUT), st.floats(0, 60)
)
def test_no_run_is_taken_before_its_sandboxes_would_end_by_themselves(
    state: FlowState, since: float, began: bool, elsewhere: bool, sign: float, tolerance: float
) -> None:
    judged = judge(Facts(state, since, began, elsewhere, sign, TIMEOUT, tolerance))
    assert judged.owner is Owner.FLOW
    assert judged.why


@pytest.mark.parametrize(
    ("sign", "owner"),
    [(None, Owner.UNCLEAR), (0.0, Owner.FLOW), (1250.0 + 60.0, Owner.FLOW), (1250.0 + 61.0, Owner.NOBODY)],
)
def test_a_step_operator_s_caller(sign: float | None, owner: Owner) -> None:
    """A quarter more than its `orphan_timeout`, in which a sandbox that can ends by itself; and the clocks."""
    assert judge_caller(sign, orphan_timeout=1000, tolerance=60).owner is owner


def test_a_sandbox_that_no_step_is_in() -> None:
    assert judge_idle("completed", is_over=True) == Judgement(
        Owner.NOBODY, "no step is in it, and its run is completed"
    )
    assert judge_idle("failed", is_over=False).owner is Owner.UNCLEAR
