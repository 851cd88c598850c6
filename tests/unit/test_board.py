"""The table of a run: states, attempts, and where the seconds went."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, SandboxSpec, StepPlan
from bridge.watching.board import SHARED, Board, Row, Seen
from bridge.watching.step_told import About


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Told:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.all: list[tuple[str | int, ...]] = []
        self.gpus: dict[str, str] = {}
        self.isolated: dict[tuple[str, int], str] = {}

    def started(self, step: About, attempt: int, sandbox: str) -> None:
        self.gpus[step.step] = step.gpu
        self.isolated[step.step, attempt] = step.isolated
        self.all.append(("started", step.step, attempt, sandbox))

    def retried(self, step: About, attempt: int) -> None:
        self.all.append(("retried", step.step, attempt))

    def lost(self, step: About, attempt: int, what: str) -> None:
        self.all.append(("lost", step.step, attempt, what))

    def failed(self, step: About, attempt: int, why: str) -> None:
        self.all.append(("failed", step.step, attempt, why))

    def finished(self, step: About, attempt: int, state: str) -> None:
        self.all.append(("finished", step.step, attempt, state))


def board(clock: Clock, listener: Told | None = None) -> Board:
    plain = SandboxSpec()
    steps = (
        StepPlan("load", (), (), plain),
        StepPlan("train", ("load",), (), SandboxSpec(resources=Resources(gpu=Gpu(("A100", "H100"), 2)))),
        StepPlan("report", ("train",), (), plain),
        StepPlan("publish", ("report",), (), plain),
    )
    plan = Plan("p", "snapshot", "stack", Mode.PER_STEP, FailureMode.FAIL_FAST, steps)
    return Board(plan, clock, listener)


def row(board: Board, step: str) -> Row:
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
    assert seen.open_steps == [each["step"] for each in seen.table() if each["step"] != "load"]
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


def test_a_listener_hears_of_every_attempt() -> None:
    told = Told()
    seen = board(Clock(), told)
    seen.attempt("load", 1)
    seen.lost("load", "no machine")
    seen.in_sandbox("load", "sb-1", None)
    seen.attempt_over("load", "it broke")
    seen.attempt("load", 2)
    seen.in_sandbox("load", "sb-2", None)
    seen.attempt_over("load")
    seen.ended("load", "Completed", "")
    seen.ended("train", "Cancelled", "stopped")
    assert told.all == [
        ("lost", "load", 1, "no machine"),
        ("started", "load", 1, "sb-1"),
        ("failed", "load", 1, "it broke"),
        ("retried", "load", 2),
        ("started", "load", 2, "sb-2"),
        ("finished", "load", 2, "Completed"),
    ]


def test_an_attempt_that_an_earlier_process_began_is_no_retry() -> None:
    told = Told()
    board(Clock(), told).attempt("load", 2, begun=True)
    assert told.all == []


def test_what_zenml_says_is_told_once_also_where_it_was_too_quick_to_be_seen() -> None:
    told, at = Told(), datetime(2026, 1, 1)
    seen = board(Clock(), told)
    seen.all_in_sandbox("sb-1", None)

    def look(status: str, attempt: int, *, ended: bool = False) -> None:
        seen.seen([Seen("load", status, attempt, at, at if ended else None, ended)], at)

    look("running", 1)
    look("running", 1)
    look("retrying", 1)
    look("retrying", 1)
    seen.all_lost("evicted")
    look("running", 3)
    look("failed", 3, ended=True)
    look("failed", 3, ended=True)
    seen.seen([Seen("train", "cached", 1, at, at, True)], at)
    assert told.all == [
        ("started", "load", 1, "sb-1"),
        ("failed", "load", 1, ""),
        ("lost", "load", 1, "evicted"),
        ("retried", "load", 2),
        ("started", "load", 2, ""),
        ("failed", "load", 2, ""),
        ("retried", "load", 3),
        ("started", "load", 3, ""),
        ("failed", "load", 3, ""),
        ("finished", "train", 1, "cached"),
    ]


def test_an_isolated_step_of_a_dynamic_pipeline_is_told_of_with_its_own_machine() -> None:
    told, at = Told(), datetime(2026, 1, 1)
    shared = SandboxSpec(resources=Resources(gpu=Gpu(("T4",))))
    plan = Plan("p", "snapshot", "stack", Mode.DYNAMIC, FailureMode.FAIL_FAST, (), sandbox=shared)
    seen = Board(plan, Clock(), told)
    seen.all_in_sandbox("sb-function", None)
    seen.add("train", attempt=1, step_run="first")
    seen.seen(
        [
            Seen("train", "provisioning", 1, None, None, False, "first"),
            Seen("inline", "running", 1, at, None, False, "shared"),
        ],
        at,
    )
    seen.add("train", "2 x H100", attempt=1, step_run="first")
    seen.in_sandbox("train", "sb-own", None)
    seen.seen([Seen("train", "running", 1, at, None, False)], at)
    seen.seen([Seen("train", "retrying", 1, at, at, False)], at)
    seen.seen([Seen("train", "running", 2, at, None, False, "second")], at)  # before its flow has seen it
    seen.seen([Seen("train", "completed", 2, at, at, True)], at)
    assert told.all == [
        ("started", "inline", 1, "sb-function"),
        ("started", "train", 1, "sb-own"),
        ("failed", "train", 1, ""),
        ("retried", "train", 2),
        ("started", "train", 2, "sb-own"),
        ("finished", "train", 2, "completed"),
    ]
    assert told.gpus == {"inline": "1 x T4", "train": "2 x H100"}
    assert told.isolated == {("inline", 1): "", ("train", 1): "first", ("train", 2): "second"}


def test_what_an_earlier_process_told_is_not_told_again() -> None:
    told, at = Told(), datetime(2026, 1, 1)
    steps = tuple(StepPlan(name, (), (), SandboxSpec()) for name in ("done", "again"))
    plan = Plan("p", "snapshot", "stack", Mode.PIPELINE, FailureMode.FAIL_FAST, steps)
    seen = Board(plan, Clock(), told, goes_on=True)
    seen.all_in_sandbox("sb-2", None)
    done = Seen("done", "completed", 1, at, at, True)
    seen.seen([done, Seen("again", "retrying", 2, at, at, False)], at)
    seen.seen([done, Seen("again", "running", 3, at, None, False)], at)
    seen.seen([done, Seen("again", "completed", 3, at, at, True)], at)
    assert told.all == [("retried", "again", 3), ("started", "again", 3, "sb-2"), ("finished", "again", 3, "completed")]
