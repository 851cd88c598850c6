"""What the model says of runs of dynamic pipelines: no to each thing that must not be, nothing to what is right."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tests.chaos.case import Case, StepSpec, make_dynamic_case
from tests.chaos.dynamic_model import violations
from tests.chaos.seen import Sandbox, Seen, Strike, TaskRun
from tests.chaos.test_model import box as any_box
from tests.chaos.test_model import ran

CASE = Case(
    seed=0,
    steps=(StepSpec("s0", lines=2), StepSpec("s1", upstream=("s0",), retries=1, lines=0), StepSpec("s2", cached=True)),
    mode="dynamic",
    warm=False,
    failure_mode="continue_on_failure",
    max_parallelism=1,
    infrastructure_retries=1,
    backend=2,
    init_failures=0,
    lost_replies=0,
)


box = partial(any_box, step="s0")


def function(begin: float, seconds: float) -> Sandbox:
    return Sandbox(f"sb-function-{begin:.0f}", "", "success", begin, seconds)


GOOD = Seen(
    attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20)]},
    sandboxes=[function(1, 40), box(10), box(20)],
    run="completed",
    flow_run="Completed",
    step_runs={"s0": ["completed"], "s1": ["completed"], "s2": ["cached"]},
    task_runs={name: TaskRun("Completed", 1) for name in ("chaos_dynamic", "s0", "s1")},
    logs={"s0": ["s0 1 line 0", "s0 1 line 1"]},
)
AGAIN = replace(
    GOOD,
    attempts={"s0": [ran(1, 10)], "s1": [ran(1, 20, "fail"), ran(2, 30)]},
    sandboxes=[function(1, 40), box(10), box(20), box(30)],
    step_runs={**GOOD.step_runs, "s1": ["retried", "completed"]},
    task_runs={**GOOD.task_runs, "s1": TaskRun("Failed", 1), "s1 (attempt 2)": TaskRun("Completed", 1)},
)
FAILED = replace(
    GOOD,
    attempts={"s0": [ran(1, 10, "fail")]},
    step_runs={"s0": ["failed"], "s2": ["cached"]},
    task_runs={"chaos_dynamic": TaskRun("Completed", 1), "s0": TaskRun("Failed", 1)},
)


def lost(*times: float) -> list[Strike]:
    return [Strike("evict function", "s1", 1, "sb-20", time, True) for time in times]


BESIDE = replace(
    CASE, steps=(StepSpec("s0", lines=2), StepSpec("s1", retries=1, lines=0)), failure_mode="stop_on_failure"
)
GIVEN_UP = replace(
    FAILED,
    attempts={"s0": [ran(1, 10, "fail")], "s1": [ran(1, 12, "fail")]},
    run="failed",
    flow_run="Failed",
    step_runs={"s0": ["failed"], "s1": ["stopped"]},
    task_runs={
        "chaos_dynamic": TaskRun("Failed", 1),
        "s0": TaskRun("Failed", 1),
        "s1": TaskRun("Failed", 1),
    },
)


@pytest.mark.parametrize(
    ("case", "seen"),
    [
        (CASE, GOOD),
        (CASE, AGAIN),
        (CASE, FAILED),
        (replace(CASE, failure_mode="stop_on_failure"), replace(FAILED, run="failed", flow_run="Failed")),
        (CASE, replace(GOOD, strikes=lost(20.5))),
        (CASE, replace(GOOD, strikes=lost(20.5, 20.7))),
        (replace(BESIDE, max_parallelism=2), GIVEN_UP),
    ],
    ids=["plain", "retried", "failed, and on", "failed", "function lost", "lost again", "given up"],
)
def test_what_is_right(case: Case, seen: Seen) -> None:
    function_state = {"failed": "Failed", "completed": "Completed"}[seen.run]
    seen = replace(seen, task_runs={**seen.task_runs, "chaos_dynamic": TaskRun(function_state, 1)})
    assert violations(case, seen) == []


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (replace(GOOD, run="failed", flow_run="Failed"), "the run is failed in ZenML"),
        (replace(GOOD, flow_run="Failed"), "Failed in Prefect"),
        (replace(GOOD, task_runs={**GOOD.task_runs, "s1": TaskRun("Failed", 1)}), "s1 is completed in ZenML"),
        (replace(GOOD, task_runs={**GOOD.task_runs, "s1 (attempt 2)": TaskRun("Completed", 1)}), "2 task runs of s1"),
        (replace(GOOD, task_runs={"chaos_dynamic": TaskRun("Completed", 1)}), "Prefect has no task run of s0"),
        (replace(GOOD, task_runs={**GOOD.task_runs, "chaos_dynamic": TaskRun("Running", 1)}), "function's task run"),
        (replace(GOOD, sandboxes=[*GOOD.sandboxes, function(30, 40)]), "2 sandboxes of the function at once"),
        (replace(GOOD, sandboxes=[*GOOD.sandboxes, box(10.5)]), "2 sandboxes of steps at once"),
        (replace(GOOD, alive=["sb-10"]), "sandboxes live on"),
        (replace(GOOD, step_runs={**GOOD.step_runs, "s1": ["retrying"]}), "s1 is retrying at the end"),
        (replace(AGAIN, step_runs={**AGAIN.step_runs, "s1": ["completed"]}), "ZenML has 1 step runs of s1"),
        (replace(AGAIN, attempts={**GOOD.attempts, "s1": [ran(1, 20), ran(2, 30)]}), "s1 succeeded 2 times"),
        (
            replace(AGAIN, task_runs={**AGAIN.task_runs, "s1": TaskRun("Running", 1)}),
            "an earlier task run of s1 is Running",
        ),
        (replace(GOOD, logs={}), "lacks 2 of 2 lines"),
        (Seen(hung="for 300 s"), "hung"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_wrong(seen: Seen, says: str) -> None:
    assert any(says in sentence for sentence in violations(CASE, seen)), violations(CASE, seen)


def test_a_step_that_is_stopped_needs_a_reason() -> None:
    stopped = replace(GOOD, step_runs={**GOOD.step_runs, "s1": ["stopped"]})
    assert any("s1 is stopped, not completed" in sentence for sentence in violations(CASE, stopped))


def test_a_seed_makes_the_same_case_again_and_all_kinds_have_their_turn() -> None:
    assert make_dynamic_case(3) == make_dynamic_case(3)
    kinds = {kind for seed in range(18) for step in make_dynamic_case(seed).steps for kind in step.strikes.values()}
    assert {"evict function", "lose function", "kill flow", "cancel"} <= kinds
