"""The table of a run: states, attempts, and where the seconds went."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from bridge.board import SHARED, Board, Seen
from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, SandboxSpec, StepPlan


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def board(clock: Clock) -> Board:
    plain = SandboxSpec()
    steps = (
        StepPlan("load", (), (), plain),
        StepPlan("train", ("load",), (), SandboxSpec(resources=Resources(gpu=Gpu(("A100", "H100"), 2)))),
        StepPlan("report", ("train",), (), plain),
        StepPlan("publish", ("report",), (), plain),
    )
    plan = Plan("p", "snapshot", "stack", Mode.PER_STEP, FailureMode.FAIL_FAST, steps)
    return Board(plan, clock)


def row(board: Board, step: str) -> dict[str, str | int]:
    return next(row for row in board.table() if row["step"] == step)


def test_seconds_of_waiting_and_running() -> None:
    clock = Clock()
    seen = board(clock)
    assert row(seen, "train") == {
        "step": "train",
        "state": "waiting for upstream",
        "attempt": "",
        "waiting (s)": 0,
        "running (s)": 0,
        "sandbox": "",
        "lost sandboxes": "",
        "GPU": "2 x A100 or H100",
        "cost ($)": "",
        "why": "",
    }
    clock.now += 5
    seen.attempt("load", 1)
    clock.now += 2
    seen.in_sandbox("load", "sb-1", "https://modal.example/sb-1")
    clock.now += 10
    assert row(seen, "load") | {"GPU": ""} == {
        "step": "load",
        "state": "running",
        "attempt": 1,
        "waiting (s)": 7,
        "running (s)": 10,
        "sandbox": "[sb-1](https://modal.example/sb-1)",
        "lost sandboxes": "",
        "GPU": "",
        "cost ($)": "",
        "why": "",
    }
    seen.attempt_over("load")
    clock.now += 30
    seen.attempt("load", 2)
    seen.in_sandbox("load", "sb-2", None)
    clock.now += 1
    seen.ended("load", "Completed", "")
    clock.now += 4
    load, train = row(seen, "load"), row(seen, "train")
    assert (load["attempt"], load["waiting (s)"], load["running (s)"], load["sandbox"]) == (2, 37, 11, "sb-2")
    assert (train["state"], train["waiting (s)"]) == ("waiting", 4)
    assert seen.progress == 25.0


def test_why_a_step_did_not_run() -> None:
    seen = board(Clock())
    seen.ended("load", "Failed", "ValueError: x")
    seen.ended("train", "NotRun", "upstream load failed")
    seen.close("the run was stopped")
    assert [(row["state"], row["why"]) for row in seen.table()] == [
        ("Failed", "ValueError: x"),
        ("NotRun", "upstream load failed"),
        ("NotRun", "upstream train: NotRun"),
        ("NotRun", "upstream report: NotRun"),
    ]
    assert seen.progress == 100.0


def test_filled_from_zenml() -> None:
    seen = board(Clock())
    start, end, now = datetime(2026, 1, 1, 12), datetime(2026, 1, 1, 12, 0, 9), datetime(2026, 1, 1, 12, 1)
    seen.all_in_sandbox("sb-1", None)
    seen.seen([Seen("load", "completed", 1, start, end, True), Seen("train", "running", 2, end, None, False)], now)
    load, train = row(seen, "load"), row(seen, "train")
    assert (load["state"], load["running (s)"], load["sandbox"]) == ("completed", 9, "sb-1")
    assert (train["state"], train["running (s)"], train["attempt"]) == ("running", 51, 2)
    seen.seen([Seen("train", "failed", 2, end, now, True)], now)
    seen.explain("train", "ValueError: x")
    assert (row(seen, "train")["state"], row(seen, "train")["why"]) == ("failed", "ValueError: x")


def test_what_steps_cost_and_what_they_share() -> None:
    seen = board(Clock())
    assert seen.cost is None
    seen.costs({"train": Decimal("1.23456"), None: Decimal("0.5")})
    assert row(seen, "train")["cost ($)"] == "1.2346"
    assert row(seen, "load")["cost ($)"] == ""
    assert row(seen, SHARED) == dict.fromkeys(row(seen, "load"), "") | {"step": SHARED, "cost ($)": "0.5000"}
    assert seen.cost == Decimal("1.73456")
    seen.costs({})  # Modal didn't tell this time
    assert seen.cost == Decimal("1.73456")


def test_a_dynamic_pipeline_grows() -> None:
    """Inline steps are seen in ZenML alone, isolated ones have sandboxes of their own."""
    clock = Clock()
    seen = Board(Plan("p", "snapshot", "stack", Mode.DYNAMIC, FailureMode.FAIL_FAST, ()), clock)
    assert (seen.table(), seen.progress) == ([], 100.0)
    start = datetime(2026, 1, 1)
    seen.all_in_sandbox("sb-function", None)
    seen.add("train")
    seen.in_sandbox("train", "sb-own", None)
    found = [Seen("load", "completed", 1, start, start, True), Seen("train", "running", 2, start, None, False)]
    seen.seen(found, start)
    assert [(row["step"], row["state"], row["attempt"], row["sandbox"]) for row in seen.table()] == [
        ("train", "running", 2, "sb-own"),
        ("load", "completed", 1, "sb-function"),
    ]
    assert seen.progress == 50.0
    seen.close("the run ended")
    assert seen.progress == 100.0
    assert row(seen, "train")["why"] == "the run ended"
