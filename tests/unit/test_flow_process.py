"""When a flow run counts as dead."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelling, Crashed, Pending, Running, Scheduled

from bridge.cleanup.lease import FIRST_SIGN_SECONDS
from bridge.flow_run import whereabouts
from bridge.flow_run.flow_process import alive_here, doubt_of_death

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
ELSEWHERE = "pod-1~0a1b2c3d/7/123"
HERE = whereabouts.of_this_process()
GONE = HERE + "0"
ORPHAN_TIMEOUT = 1800


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def flow_run(state: State[None], life: int = 2) -> FlowRun:
    return FlowRun(flow_id=uuid4(), state=state, run_count=life)


def sign(seconds: float, process: str, life: int = 2) -> str:
    return f"{ago(seconds).isoformat(timespec='milliseconds')} {process} {life}"


CASES: dict[str, tuple[State[None], str, str]] = {
    "a fresh sign": (
        Running(timestamp=ago(9999)),
        sign(100, ELSEWHERE),
        "sign of life 100 s ago, on pod-1. Wait 365 s",
    ),
    "an old sign": (Running(timestamp=ago(9999)), sign(466, ELSEWHERE), ""),
    "being cancelled": (Cancelling(timestamp=ago(9999)), sign(100, ELSEWHERE), "sign of life 100 s ago"),
    "gone from here": (Running(timestamp=ago(9999)), sign(1, GONE), ""),
    "an earlier process's sign": (Running(timestamp=ago(10)), sign(100, ELSEWHERE, 1), "no sign of life yet"),
    "an earlier process gone": (
        Running(timestamp=ago(10)),
        sign(100, GONE, 1),
        "Running for 10 s and has given no sign",
    ),
    "just begun": (Running(timestamp=ago(10)), "", "Wait 110 s, or pass --yes"),
    "never gave one": (Running(timestamp=ago(FIRST_SIGN_SECONDS + 1)), "", ""),
    "pending": (Pending(timestamp=ago(9999)), "", "Pass --yes if you know that nothing is starting it"),
    "somebody resumes it": (
        Pending(timestamp=ago(10)),
        sign(100, GONE),
        "Pass --yes if you know that nothing is starting",
    ),
    "about to go on": (Scheduled(timestamp=ago(10)), sign(100, GONE), "Scheduled for 10 s and has given no sign"),
    "never went on": (Scheduled(timestamp=ago(FIRST_SIGN_SECONDS + 1)), sign(130, ELSEWHERE), ""),
    "to be retried, maybe in its process": (
        AwaitingRetry(timestamp=ago(300)),
        sign(310, ELSEWHERE),
        "sign of life 310 s ago, on pod-1. Wait 155 s",
    ),
    "to be retried, and gone from here": (AwaitingRetry(timestamp=ago(1)), sign(2, GONE), ""),
    "crashed": (Crashed(timestamp=ago(1)), sign(1, ELSEWHERE), ""),
    "called crashed, and signed since": (
        Crashed(timestamp=ago(600)),
        sign(5, ELSEWHERE),
        "sign of life 5 s ago, on pod-1. Wait 460 s",
    ),
    "called crashed, by another clock": (Crashed(timestamp=ago(60)), sign(5, ELSEWHERE), ""),
    "called crashed, and gone from here": (Crashed(timestamp=ago(600)), sign(5, GONE), ""),
    "crashed before it signed": (Crashed(timestamp=ago(600)), sign(5, ELSEWHERE, 1), ""),
}


@pytest.mark.parametrize("case", list(CASES))
def test_what_tells_that_a_flow_is_dead(case: str) -> None:
    state, given, doubt = CASES[case]
    said = doubt_of_death(flow_run(state), given, ORPHAN_TIMEOUT, NOW)
    assert doubt in said
    assert bool(doubt) == bool(said)


def test_a_flow_run_that_never_began() -> None:
    for state in (Crashed(timestamp=ago(1)), Cancelling(timestamp=ago(9999))):
        assert doubt_of_death(flow_run(state, 0), "", ORPHAN_TIMEOUT, NOW) == ""
        assert alive_here(flow_run(state, 0), "") == ""


def test_a_process_on_this_machine() -> None:
    pid = HERE.split("/")[-2]
    assert alive_here(flow_run(Crashed()), sign(9999, HERE)) == pid, "whatever Prefect calls it"
    assert alive_here(flow_run(Running()), sign(1, HERE, 1)) == "", "an earlier life of the flow run"
    assert alive_here(flow_run(Scheduled()), sign(1, HERE)) == "", "it paused, and has other things to do"
    assert alive_here(flow_run(Running()), sign(1, GONE)) == ""
    assert alive_here(flow_run(Running()), sign(1, ELSEWHERE)) == ""
    assert alive_here(flow_run(Running()), "") == ""
