"""The model says no to each thing that must not be, and nothing to a run that is as it must be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.case import Case, StepSpec
from tests.chaos.model import violations
from tests.chaos.seen import Attempt, Sandbox, Seen, Strike, TaskRun

PLAIN = Case(
    seed=0,
    steps=(StepSpec("s0", lines=2), StepSpec("s1", upstream=("s0",), retries=1, lines=0)),
    mode="per_step",
    warm=False,
    failure_mode="continue_on_failure",
    max_parallelism=1,
    infrastructure_retries=3,
    backend=2,
    init_failures=0,
    lost_replies=0,
)


def ran(number: int, begin: float, how: str | None = "end", sandbox: str = "") -> Attempt:
    ended = begin + 1 if how else None
    return Attempt(number, sandbox or f"sb-{begin:.0f}", 100 + number, begin, ended, how)


def box(begin: float, seconds: float = 2.0, step: str = "") -> Sandbox:
    return Sandbox(f"sb-{begin:.0f}", step, "success", begin - 0.5, seconds)


GOOD = Seen(
    attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20)]},
    sandboxes=[box(10), box(20)],
    run="completed",
    flow_run="Completed",
    step_runs={"s0": ["completed"], "s1": ["completed"]},
    task_runs={"s0": TaskRun("Completed", 1), "s1": TaskRun("Completed", 1)},
    logs={"s0": ["s0 1 line 0", "Some other words", "s0 1 line 1"]},
)


def struck(kind: str, step: str = "s1", time: float = 20.5, sandbox: str = "sb-20") -> Strike:
    return Strike(kind, step, 1, sandbox, time, True)


def twice(kind: str | None, versions: list[str], run_count: int) -> Seen:
    """``s1`` is tried twice: its first attempt is struck, or fails by itself."""
    first = ran(1, 20, None if kind else "fail")
    return replace(
        GOOD,
        attempts={"s0": [ran(1, 10)], "s1": [first, ran(2, 30)]},
        strikes=[struck(kind)] if kind else [],
        sandboxes=[box(10), Sandbox("sb-20", "", "x", 19.5, 1.0), box(30)],
        step_runs={"s0": ["completed"], "s1": versions},
        task_runs={"s0": TaskRun("Completed", 1), "s1": TaskRun("Completed", run_count)},
    )


@pytest.mark.parametrize(
    "seen",
    [
        GOOD,
        twice("evict", ["completed"], 1),
        twice("oom", ["retried", "completed"], 2),
        twice(None, ["retried", "completed"], 2),
    ],
    ids=["plain", "lost", "killed", "failed once"],
)
def test_what_is_right(seen: Seen) -> None:
    assert violations(PLAIN, seen) == []


WARM = replace(
    PLAIN,
    warm=True,
    steps=(StepSpec("s0", lines=2, big=True), StepSpec("s1", ("s0",), retries=1, lines=0, big=True)),
)


@pytest.mark.parametrize(
    ("shared", "versions", "run_count"), [(True, ["completed"], 1), (False, ["retried", "completed"], 2)]
)
def test_the_time_of_a_warm_sandbox_is_over(shared: bool, versions: list[str], run_count: int) -> None:
    """That others have spent time in it isn't the step's fault: it costs none of its own retries."""
    seen = twice("timeout", versions, run_count)
    if shared:
        earlier = ran(1, 10, sandbox="sb-20")
        seen = replace(
            seen, attempts={**seen.attempts, "s0": [earlier]}, sandboxes=[Sandbox("sb-20", "", "x", 9.5, 11.0), box(30)]
        )
    assert violations(WARM, seen) == []
    wrong = replace(
        seen,
        step_runs={**seen.step_runs, "s1": ["completed"] if run_count == 2 else ["retried", "completed"]},
        task_runs={**seen.task_runs, "s1": TaskRun("Completed", 3 - run_count)},
    )
    assert violations(WARM, wrong)


@pytest.mark.parametrize("seconds", [16.0, 9.0])
def test_an_attempt_that_waits_for_a_server_longer_than_its_step_may_take(seconds: float) -> None:
    """It ran into its timeout; one that ended sooner was ended by nobody who may."""
    spec = StepSpec("s1", ("s0",), retries=1, lines=0, strikes={1: "prefect away", 2: "timeout"})
    case = replace(PLAIN, warm=True, steps=(PLAIN.steps[0], spec))
    seen = twice("prefect away", ["retried", "completed"], 2)
    seen = replace(seen, sandboxes=[box(10), Sandbox("sb-20", "", "x", 19.5, seconds), box(40)])
    seen = replace(seen, attempts={**seen.attempts, "s1": [ran(1, 20, None), ran(2, 40)]})
    assert (violations(case, seen) == []) == (seconds > 15)


FAILED = replace(
    GOOD,
    run="failed",
    flow_run="Failed",
    attempts={"s0": [ran(1, 10, "fail")]},
    step_runs={"s0": ["failed"]},
    task_runs={"s0": TaskRun("Failed", 1), "s1": TaskRun("NotRun", 0)},
)
CANCELLED = replace(
    GOOD,
    run="stopped",
    flow_run="Cancelled",
    attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20, None)]},
    strikes=[struck("cancel")],
    step_runs={"s0": ["completed"], "s1": ["stopped"]},
    task_runs={"s0": TaskRun("Completed", 1), "s1": TaskRun("Cancelled", 1)},
)
PIPELINE = replace(PLAIN, mode="pipeline", max_parallelism=2)
IN_ONE = replace(
    GOOD,
    attempts={"s0": [ran(1, 10, sandbox="sb-1")], "s1": [ran(1, 20, sandbox="sb-1")]},
    sandboxes=[Sandbox("sb-1", "", "success", 5, 30)],
    task_runs={"chaos": TaskRun("Completed", 1)},
    logs={"": ["[s0] s0 1 line 0", "[s0] s0 1 line 1"]},
)


def test_what_is_right_too() -> None:
    assert violations(PLAIN, FAILED) == []
    assert violations(PLAIN, CANCELLED) == []
    assert violations(PIPELINE, IN_ONE) == []


def stopped_later(time: float, how: str | None) -> Seen:
    """A step failed, which lets the other one come to its end; meanwhile, or later, the run was cancelled."""
    return replace(
        CANCELLED,
        run="failed",
        attempts={"s0": [ran(1, 10, "fail")], "s1": [ran(1, 10, how)]},
        strikes=[struck("cancel", time=time)],
        sandboxes=[box(10)],
        step_runs={"s0": ["failed"], "s1": ["stopped"]},
        task_runs={"s0": TaskRun("Failed", 1), "s1": TaskRun("Cancelled", 1)},
    )


BESIDE = replace(
    PLAIN,
    steps=(StepSpec("s0", lines=0), StepSpec("s1", lines=0)),
    failure_mode="stop_on_failure",
    max_parallelism=2,
)


def test_what_a_failure_lets_come_to_its_end_a_stop_may_end() -> None:
    assert violations(BESIDE, stopped_later(13, None)) == []
    assert any("s1 is stopped, not completed" in wrong for wrong in violations(BESIDE, stopped_later(20, "end")))


def test_an_end_that_zenml_has_not_heard_of_may_be_lost_with_its_sandbox() -> None:
    """A step comes to its end while ZenML's server is away; before it is back its sandbox is killed."""
    one = replace(PIPELINE, steps=(StepSpec("s0", lines=0),), failure_mode="fail_fast")
    killed = replace(struck("terminate", "s0", time=28, sandbox="sb-1"))
    lost = replace(
        FAILED,
        attempts={"s0": [ran(1, 10, sandbox="sb-1")]},
        strikes=[struck("zenml away", "s0", time=11, sandbox="sb-1"), killed],
        sandboxes=[Sandbox("sb-1", "", "terminated", 5, 23)],
        task_runs={"chaos": TaskRun("Failed", 1)},
        logs={},
    )
    assert violations(one, lost) == []
    assert any("s0 is failed, not completed" in wrong for wrong in violations(one, replace(lost, strikes=[killed])))


WRONG = {
    "hung": replace(GOOD, hung="the flow"),
    "is running at the end": replace(GOOD, step_runs={**GOOD.step_runs, "s1": ["running"]}),
    "is completed in ZenML and Failed in Prefect": replace(
        GOOD, task_runs={**GOOD.task_runs, "s1": TaskRun("Failed", 1)}
    ),
    "the run is completed in ZenML and Failed in Prefect": replace(GOOD, flow_run="Failed"),
    "the run is running in ZenML": replace(GOOD, run="running"),
    "sandboxes live on": replace(GOOD, alive=["sb-1"]),
    "2 sandboxes at once": replace(GOOD, sandboxes=[box(10, 20), box(20)]),
    "2 steps at once": replace(GOOD, attempts={"s0": [replace(ran(1, 10), ended=25)], "s1": [ran(1, 20)]}),
    "s1 began before ['s0'] had ended": replace(GOOD, attempts={"s0": [ran(1, 10)], "s1": [ran(1, 10.5)]}),
    "lacks 1 of 2 lines": replace(GOOD, logs={"s0": ["s0 1 line 0"]}),
    "lines twice": replace(GOOD, logs={"s0": ["s0 1 line 0", "s0 1 line 1", "s0 1 line 1"]}),
    "out of order": replace(GOOD, logs={"s0": ["s0 1 line 1", "s0 1 line 0"]}),
    "s0 succeeded 2 times": replace(GOOD, attempts={**GOOD.attempts, "s0": [ran(1, 10), ran(2, 12)]}),
    "ran again after it had succeeded": replace(
        GOOD, attempts={**GOOD.attempts, "s0": [ran(1, 10), ran(2, 12, "fail")]}
    ),
    "was ended by nobody who may": replace(GOOD, attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20, None), ran(2, 30)]}),
    "processes (101,) of it still ran": replace(
        twice("evict", ["completed"], 1),
        attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20, None), replace(ran(2, 30), beside=(101,))]},
    ),
    "ZenML has 2 step runs of s1, not 1 to 1": twice("evict", ["retried", "completed"], 1),
    "Prefect counts 2 attempts of s1, not 1 to 1": twice("lose", ["completed"], 2),
    "s1 is failed, not completed": replace(
        twice("evict", ["failed"], 1), run="failed", flow_run="Failed", task_runs=FAILED.task_runs
    ),
    "s0 is completed although its code never came to its end": replace(GOOD, attempts={"s1": [ran(1, 20)]}),
    "although not all of": replace(FAILED, attempts={**FAILED.attempts, "s1": [ran(1, 20)]}),
    "s1 is none, not completed": replace(
        GOOD, attempts={"s0": [ran(1, 10)]}, step_runs={"s0": ["completed"]}, task_runs=FAILED.task_runs
    ),
    "s0 is completed, not failed": replace(FAILED, step_runs={"s0": ["completed"]}),
    "Prefect has no task run of s1": replace(GOOD, task_runs={"s0": TaskRun("Completed", 1)}),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong(sentence: str) -> None:
    assert any(sentence in found for found in violations(PLAIN, WRONG[sentence])), violations(PLAIN, WRONG[sentence])


WRONG_IN_ONE = {
    "task runs are ['Failed'], its flow run is Completed": replace(IN_ONE, task_runs={"chaos": TaskRun("Failed", 1)}),
    "task runs are ['Completed'], its flow run is": replace(
        IN_ONE, task_runs={"chaos": TaskRun("Completed", 1), "again": TaskRun("Completed", 1)}
    ),
    "Prefect counts 5 sandboxes of the pipeline, not up to 4": replace(
        IN_ONE, task_runs={"chaos": TaskRun("Completed", 5)}
    ),
    "out of order": replace(IN_ONE, logs={"": ["[s0] s0 1 line 1", "[s0] s0 1 line 0"]}),
}


@pytest.mark.parametrize("sentence", WRONG_IN_ONE)
def test_what_is_wrong_in_one_sandbox(sentence: str) -> None:
    found = violations(PIPELINE, WRONG_IN_ONE[sentence])
    assert any(sentence in each for each in found), found


@pytest.mark.parametrize(("last_kept", "wrong"), [(9_000, 0), (8_000, 1)])
def test_what_goes_on_after_a_loss_has_one_cap_with_what_was_lost(last_kept: int, wrong: int) -> None:
    kept = [*range(last_kept), *range(10_300, 10_700)]
    said = [*(f"s1 1 line {number}" for number in range(1_000)), *(f"s1 2 line {number}" for number in kept)]
    seen = replace(twice("evict", ["completed"], 1), logs={**GOOD.logs, "s1": said})
    case = replace(PLAIN, steps=(PLAIN.steps[0], replace(PLAIN.steps[1], lines=10_700)))
    assert len(violations(case, seen)) == wrong, violations(case, seen)


def test_a_cancel_that_nobody_heeded() -> None:
    seen = replace(GOOD, strikes=[struck("cancel")])
    assert any("the run is completed" in found for found in violations(PLAIN, seen))


@pytest.mark.parametrize("seen", [GOOD, CANCELLED], ids=["came too late", "stopped it"])
def test_a_cancel_meant_for_a_step_that_was_gone(seen: Seen) -> None:
    """Another strike had ended the sandbox that it shared with others."""
    assert violations(PLAIN, replace(seen, strikes=[replace(struck("cancel"), running=False)])) == []


@pytest.mark.parametrize(("cancelled_at", "wrong"), [(21.1, 0), (40.0, 1)])
def test_a_step_that_fails_while_its_run_is_being_stopped(cancelled_at: float, wrong: int) -> None:
    """ZenML may call that run stopped; one that had a failed step before is a failed one."""
    seen = replace(
        CANCELLED,
        attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20, "fail")]},
        strikes=[struck("cancel", time=cancelled_at)],
        step_runs={"s0": ["completed"], "s1": ["failed"]},
        task_runs={"s0": TaskRun("Completed", 1), "s1": TaskRun("Failed", 1)},
    )
    case = replace(PLAIN, steps=(PLAIN.steps[0], replace(PLAIN.steps[1], retries=0)))
    found = violations(case, seen)
    assert len(found) == wrong, found
    assert not wrong or "the run is stopped" in found[0]


def test_a_step_that_began_long_after_the_cancel() -> None:
    seen = replace(CANCELLED, attempts={**CANCELLED.attempts, "s0": [ran(1, 10), ran(2, 90)]})
    assert any("after the run was over" in found for found in violations(PLAIN, seen))


def test_a_step_that_failed_before_its_own_code_ran() -> None:
    """In ``pipeline`` mode, where what strikes one step strikes them all; that is when the run was over."""
    case = replace(
        PIPELINE,
        failure_mode="fail_fast",
        steps=(StepSpec("s0", lines=0, retries=1), StepSpec("s1", lines=0), StepSpec("s2", lines=0)),
    )
    seen = replace(
        IN_ONE,
        attempts={"s0": [ran(1, 20, None, "sb-1")], "s2": [ran(1, 10, sandbox="sb-1")]},
        strikes=[struck("terminate", "s0", 20.5, "sb-1")],
        sandboxes=[Sandbox("sb-1", "", "terminated", 5, 15.6)],
        run="failed",
        flow_run="Failed",
        step_runs={"s0": ["stopped"], "s1": ["failed"], "s2": ["completed"]},
        task_runs={"chaos": TaskRun("Failed", 1)},
    )
    assert violations(case, seen) == []
    late = replace(seen, attempts={**seen.attempts, "s2": [ran(1, 60, sandbox="sb-1")]})
    assert "s2 began 40 s after the run was over" in violations(case, late)


def test_a_run_that_failed_while_its_flow_was_dead() -> None:
    """What ran came to its end, and nothing else began."""
    case = replace(PLAIN, steps=(*PLAIN.steps, StepSpec("s2", upstream=("s0",), lines=0)))
    seen = replace(
        GOOD,
        attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20, "fail"), ran(2, 22, "fail")]},
        sandboxes=[box(10), Sandbox("sb-20", "", "failure", 19.5, 1.6), Sandbox("sb-22", "", "failure", 21.5, 1.6)],
        run="failed",
        flow_run="Failed",
        step_runs={"s0": ["completed"], "s1": ["retried", "failed"]},
        task_runs={"s0": TaskRun("Completed", 1), "s1": TaskRun("Failed", 1), "s2": TaskRun("NotRun", 0)},
        failed_without_flow=24.0,
    )
    assert violations(case, seen) == []
    assert violations(case, replace(seen, failed_without_flow=None)) != []


def test_a_sandbox_that_dies_under_two_steps() -> None:
    """In ``pipeline`` mode: out of memory costs each of them a retry; who has none fails, and the others go on."""
    case = replace(
        PIPELINE, steps=(StepSpec("s0", lines=0), StepSpec("s1", retries=1, lines=0), StepSpec("s2", lines=0))
    )
    killed = struck("oom", "s1", 20.5, "sb-1")
    seen = replace(
        IN_ONE,
        attempts={
            "s0": [ran(1, 20, None, "sb-1")],
            "s1": [ran(1, 20, None, "sb-1"), ran(2, 30, sandbox="sb-2")],
            "s2": [ran(1, 32, sandbox="sb-2")],
        },
        strikes=[killed],
        sandboxes=[Sandbox("sb-1", "", "kernel_oom_kill", 10, 10.6), Sandbox("sb-2", "", "success", 25, 10)],
        run="failed",
        flow_run="Failed",
        step_runs={"s0": ["failed"], "s1": ["retried", "completed"], "s2": ["completed"]},
        task_runs={"chaos": TaskRun("Failed", 2)},
    )
    assert violations(case, seen) == []
    given_up = replace(seen, step_runs={"s0": ["failed"], "s1": ["retried", "failed"]})
    assert len(violations(case, given_up)) >= 2


def test_a_step_that_is_struck_again_before_its_own_code_runs() -> None:
    """In ``pipeline`` mode: its first attempt has gone with the first sandbox, and is none that runs in the second."""
    case = replace(
        PIPELINE,
        steps=(StepSpec("s0", lines=0), StepSpec("s1", retries=2, lines=0), StepSpec("s2", retries=1, lines=0)),
    )
    seen = replace(
        IN_ONE,
        attempts={
            "s0": [ran(1, 10, sandbox="sb-1")],
            "s1": [ran(1, 20, None, "sb-1"), ran(2, 40, sandbox="sb-3")],
            "s2": [ran(1, 30, None, "sb-2"), ran(2, 40, sandbox="sb-3")],
        },
        strikes=[struck("oom", "s1", 20.5, "sb-1"), struck("terminate", "s2", 30.5, "sb-2")],
        sandboxes=[
            Sandbox("sb-1", "", "kernel_oom_kill", 5, 15.6),
            Sandbox("sb-2", "", "terminated", 25, 5.6),
            Sandbox("sb-3", "", "success", 35, 10),
        ],
        step_runs={
            "s0": ["completed"],
            "s1": ["retried", "retried", "completed"],
            "s2": ["retried", "completed"],
        },
        task_runs={"chaos": TaskRun("Completed", 3)},
    )
    assert violations(case, seen) == []


def test_steps_that_fail_in_one_sandbox_while_their_run_is_being_stopped() -> None:
    """Their task says that they have failed, the flow run that it was stopped."""
    case = replace(PIPELINE, steps=(StepSpec("s0", lines=0), StepSpec("s1", lines=0)))
    seen = replace(
        IN_ONE,
        attempts={"s0": [ran(1, 10, sandbox="sb-1")], "s1": [ran(1, 20, None, "sb-1")]},
        strikes=[struck("terminate", "s1", 20.5, "sb-1"), struck("stop", "s1", 20.5, "sb-1")],
        sandboxes=[Sandbox("sb-1", "", "terminated", 5, 15.6)],
        run="stopped",
        flow_run="Cancelled",
        step_runs={"s0": ["completed"], "s1": ["failed"]},
        task_runs={"chaos": TaskRun("Failed", 1)},
    )
    assert violations(case, seen) == []
    untouched = replace(seen, step_runs={"s0": ["completed"], "s1": ["stopped"]})
    assert ["its flow run is Cancelled" in found for found in violations(case, untouched)] == [True]


@pytest.mark.parametrize("versions", [["completed"], ["retried", "completed"]])
@pytest.mark.parametrize(("begin", "right"), [(20.6, True), (23.0, False)], ids=["while it dies", "long after"])
def test_a_step_that_begins_in_a_dying_sandbox(versions: list[str], begin: float, right: bool) -> None:
    """In ``pipeline`` mode: its failure may not have been heard of, and then costs nothing."""
    case = replace(PIPELINE, steps=(StepSpec("s0", lines=0), StepSpec("s1", retries=1, failures=1, lines=0)))
    failed = replace(ran(1, begin, "fail", "sb-1"), ended=begin + 0.01)
    seen = replace(
        IN_ONE,
        attempts={
            "s0": [ran(1, 20, None, "sb-1"), ran(2, 30, sandbox="sb-2")],
            "s1": [failed, ran(2, 30, sandbox="sb-2")],
        },
        strikes=[struck("evict", "s0", 20.5, "sb-1")],
        sandboxes=[Sandbox("sb-1", "", "eviction", 10, begin - 9.9), Sandbox("sb-2", "", "success", 25, 10)],
        step_runs={"s0": ["completed"], "s1": versions},
    )
    expected = [] if right or len(versions) == 2 else ["ZenML has 1 step runs of s1, not 2 to 2"]
    assert violations(case, seen) == expected
