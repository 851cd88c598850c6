"""Is the process of a flow run alive? Told by its last sign of life, and by what Prefect says of the flow run."""

from __future__ import annotations

from datetime import datetime

from prefect.client.schemas.objects import FlowRun, State

from bridge.cleanup import lease
from bridge.flow_run import whereabouts

SLACK_SECONDS = 15.0
"""How much later than planned a sign of life may come."""


def waits(state: State[None]) -> bool:
    """Whether a flow run waits for a process that begins it, or goes on with it: none works on it.

    One that is AwaitingRetry may wait in its process. So Prefect sees it when it cancels one
    (prefect/server/orchestration/core_policy.py, ``BypassCancellingFlowRunsWithNoInfra``).
    """
    return state.is_scheduled() and state.name != "AwaitingRetry"


def alive_here(flow_run: FlowRun, sign: str) -> str:
    """Return the id of the process that works on a flow run, if it is alive on this machine, else "".

    ``sign`` is the last sign of life (:mod:`bridge.cleanup.lease`) of the flow run.
    """
    process = lease.signer(sign)[0]
    return process.split("/")[-2] if _signed(flow_run, sign) and whereabouts.is_there(process) else ""


def doubt_of_death(flow_run: FlowRun, sign: str, orphan_timeout: float, now: datetime) -> str:
    """Say why a flow run may be worked on by a process elsewhere, and what to do; "" if that is out of the question."""
    state = flow_run.state
    process, signed = lease.signer(sign)[0], _signed(flow_run, sign)
    # Prefect calls a flow Crashed whose heartbeats it misses: also one that goes on, after an outage of its own.
    if state is None or (state.is_final() and not (signed and state.is_crashed() and _signed_since(state, sign))):
        return ""
    # An earlier process of the flow run may have given the last sign, and the present one be about to give its first.
    if signed:
        if whereabouts.is_there(process) is False:
            return ""
        age, most = lease.age(sign, now) or 0.0, 2 * lease.period(orphan_timeout) + SLACK_SECONDS
        seen = f"it gave a sign of life {age:.0f} s ago, on {process.partition('~')[0]}"
    else:
        age, most = (now - state.timestamp).total_seconds(), lease.FIRST_SIGN_SECONDS
        seen = f"it has been {state.name} for {age:.0f} s and has given no sign of life yet"
    if state.is_pending():  # who knows how long its machine takes
        return f"{seen}. Pass --yes if you know that nothing is starting it"
    if age > most:
        return ""
    return f"{seen}. Wait {most - age:.0f} s, or pass --yes if you know that its process is gone"


def _signed(flow_run: FlowRun, sign: str) -> bool:
    """Whether the process that works on a flow run, or is about to, gave the last sign, and none before it did."""
    state = flow_run.state
    yet_to_come = state is not None and (waits(state) or state.is_pending())  # Prefect counts it once it runs
    return bool(sign) and lease.signer(sign)[1] == flow_run.run_count and not yet_to_come


def _signed_since(state: State[None], sign: str) -> bool:
    return (lease.age(sign, state.timestamp) or 0.0) < -lease.CLOCKS_SECONDS
