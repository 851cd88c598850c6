"""Does anybody work on this run? Decided from what ZenML and Prefect say of it; asks nobody itself.

A flow that is at work renews its lease (:mod:`bridge.cleanup.lease`), and that counts first: what Prefect says of a
flow run may be old, wrong, or another server's. A run is taken from its flow only when no sandbox of it would live on
by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bridge.cleanup.lease import FIRST_SIGN_SECONDS, grace


class FlowState(str, Enum):
    """What Prefect says of a flow run."""

    UNKNOWN = "not known to Prefect"
    WAITING = "waiting"
    """To begin, or to go on: nobody works on it now."""
    PAUSED = "paused"
    """Until somebody answers."""
    RUNNING = "running"
    CANCELLING = "being cancelled"
    CANCELLED = "cancelled"
    FAILED = "failed"
    CRASHED = "crashed"
    COMPLETED = "completed"


OVER = frozenset({FlowState.CANCELLED, FlowState.FAILED, FlowState.CRASHED, FlowState.COMPLETED})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run's flow. Ages are in seconds.

    Args:
        state: What Prefect says.
        since: How long it has said so.
        began: Whether the flow ever began.
        elsewhere: Whether it is a worker's to run.
        sign: How old the last sign of life is; None if there never was one.
        signed: Whether it is of the process that Prefect speaks of, not of one before it.
        orphan_timeout: The run's.
        tolerance: By how much the clocks of two machines may differ.
    """

    state: FlowState
    since: float
    began: bool
    elsewhere: bool
    sign: float | None
    orphan_timeout: float
    tolerance: float
    signed: bool = True


class Owner(str, Enum):
    """Whether somebody works on a run."""

    FLOW = "flow"
    """Its flow, or a step operator's caller, does, or may come back to it."""
    NOBODY = "nobody"
    UNCLEAR = "unclear"
    """Nothing says so for certain: it is to be left alone."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Who owns a run, and why. ``stopped`` says how a run that nobody owns is to end: stopped, or failed."""

    owner: Owner
    why: str
    stopped: bool = False


def judge(facts: Facts) -> Judgement:
    """Decide who owns a run."""
    patience = grace(facts.orphan_timeout) + facts.tolerance
    stopped = facts.state in (FlowState.CANCELLED, FlowState.CANCELLING, FlowState.UNKNOWN)
    if facts.sign is not None:
        return _by_sign(facts, facts.sign, patience, stopped)
    said = f"its flow run has been {facts.state.value} for {_span(facts.since)}"
    if facts.state is FlowState.UNKNOWN:
        return Judgement(Owner.UNCLEAR, "Prefect doesn't know its flow run, which never gave a sign of life")
    if facts.state in OVER and not facts.began:
        return Judgement(Owner.NOBODY, f"its flow run was {facts.state.value} before it began", stopped)
    if facts.since <= patience or (facts.elsewhere and facts.state in (FlowState.WAITING, FlowState.PAUSED)):
        return Judgement(Owner.FLOW, said)
    if facts.state in (FlowState.RUNNING, FlowState.CANCELLING):
        return Judgement(Owner.UNCLEAR, f"{said} and never gave a sign of life, as those of older releases don't")
    return Judgement(Owner.NOBODY, said, stopped)


def judge_caller(sign: float | None, orphan_timeout: float, tolerance: float) -> Judgement:
    """Decide whether somebody waits for a step run that a step operator carries out.

    ``sign`` is the age in seconds of its caller's last sign of life, None if there never was one; ``tolerance`` is by
    how much the clocks of two machines may differ.
    """
    if sign is None:
        return Judgement(Owner.UNCLEAR, "whoever called the step operator never gave a sign of life")
    last = f"whoever called the step operator gave the last sign of life {_span(sign)} ago"
    return Judgement(Owner.NOBODY if sign > grace(orphan_timeout) + tolerance else Owner.FLOW, last)


def judge_idle(run: str, *, is_over: bool) -> Judgement:
    """Decide whether somebody may still need a sandbox in which steps of a run take turns, and none is.

    ``run`` is ZenML's status of the run; ``is_over`` says that no step of it begins any more.
    """
    if is_over:
        return Judgement(Owner.NOBODY, f"no step is in it, and its run is {run}")
    return Judgement(Owner.UNCLEAR, "no step is in it: another one may come, and where none does it ends by itself")


def _by_sign(facts: Facts, sign: float, patience: float, stopped: bool) -> Judgement:
    last = f"its flow gave its last sign of life {_span(sign)} ago"
    if sign <= patience:
        said = f", its flow run is {facts.state.value}: it may come back" if facts.state in OVER else ""
        return Judgement(Owner.FLOW, f"{last}{said}")
    if facts.state is FlowState.RUNNING and not facts.signed and facts.since <= FIRST_SIGN_SECONDS + facts.tolerance:
        return Judgement(Owner.FLOW, f"{last}, and its flow run has just begun to go on")
    # Where no worker is to come, whoever had said that it goes on would have begun by then, or has died over it.
    waits = facts.state is FlowState.WAITING and (facts.elsewhere or facts.since <= patience)
    if waits or facts.state is FlowState.PAUSED:
        return Judgement(Owner.FLOW, f"{last}, but its flow run is waiting to go on")
    return Judgement(Owner.NOBODY, f"{last}, its flow run is {facts.state.value}", stopped)


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
