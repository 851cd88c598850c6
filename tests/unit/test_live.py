"""What a person sees of a run in a terminal, drawn into a terminal that is a string."""

from __future__ import annotations

import io
from uuid import uuid4

from rich.console import Console

from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, SandboxSpec, StepPlan
from bridge.watching.board import Board, Row
from bridge.watching.followed import FollowedSteps
from bridge.watching.live import LiveView, pick


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def planned(*steps: tuple[str, tuple[str, ...]], gpu: str | None = None) -> Plan:
    machine = SandboxSpec(resources=Resources(gpu=Gpu((gpu,)) if gpu else None))
    return Plan(
        "digits",
        "snapshot",
        "stack",
        Mode.PER_STEP,
        FailureMode.CONTINUE_ON_FAILURE,
        tuple(StepPlan(name, upstream, ("step",), machine) for name, upstream in steps),
    )


def drawn(view: LiveView, width: int = 120) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=view.console.height)
    console.print(view.picture())
    text = console.file
    assert isinstance(text, io.StringIO)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def terminal(height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, height=height, highlight=False)


def test_a_run_from_its_start_to_its_end() -> None:
    clock = Clock()
    board = Board(planned(("load", ()), ("train", ("load",)), gpu="A100"), clock)
    view = LiveView(terminal(), clock)
    assert drawn(view) == ["The run is being prepared."]
    view.watch(board, "digits-1", {"Prefect": "http://127.0.0.1/run", "ZenML": None})
    board.attempt("load", 1)
    clock.now = 5
    board.in_sandbox("load", "sb-1", "https://modal.com/sb-1")
    clock.now = 75
    title, head, load, train, foot = drawn(view)
    assert title == "digits-1  0 of 2 steps, 1:15  Prefect"
    assert head.split() == ["step", "state", "waited", "ran", "sandbox"]
    assert load.split() == ["load", "running", "5", "s", "1:10", "sb-1", "1", "x", "A100"]
    assert train.split()[:4] == ["train", "waiting", "for", "upstream"]
    assert foot == "Ctrl-C stops the run and ends its sandboxes."
    board.attempt("load", 2)
    board.ended("load", "Failed", "ZeroDivisionError: division by zero\nsecond line")
    board.close("the run ended")
    title, _, load, train, _ = drawn(view)
    assert title.startswith("digits-1  0 of 2 steps")
    assert "Failed (2)" in load
    assert "ZeroDivisionError: division by zero" in load
    assert "second line" not in load
    assert "NotRun" in train
    assert "upstream load: Failed" in train


def test_a_narrow_terminal_shows_names_states_and_times_whole() -> None:
    clock = Clock()
    board = Board(planned(("again", ()), ("later", ("again",)), gpu="A100"), clock)
    view = LiveView(terminal(), clock)
    view.watch(board, "run", {})
    board.attempt("again", 1)
    clock.now = 65
    board.in_sandbox("again", f"sb-local-{'1' * 32}", None)
    board.ended("again", "Cancelled", "stopped while it waited for its retry, " * 3)
    board.close("the run ended")
    _, head, again, later, _ = drawn(view, 80)
    assert head.split() == ["step", "state", "waited", "ran", "sandbox"]
    assert again.split()[:5] == ["again", "Cancelled", "1:05", "0", "s"]
    assert later.split()[:2] == ["later", "NotRun"]


def test_a_sandbox_is_named_whole_where_nothing_else_needs_the_room() -> None:
    clock = Clock()
    board = Board(planned(("load", ())), clock)
    view = LiveView(terminal(), clock)
    view.watch(board, "digits-1", {})
    board.attempt("load", 1)
    board.in_sandbox("load", "sb-local-637b688f92c1459f99db90", None)
    clock.now = 75
    assert drawn(view, width=90)[2].split()[-1] == "sb-local-637b688f92c1459f99db90"


def test_a_run_elsewhere_before_its_flow_tells_of_its_steps() -> None:
    clock = Clock()
    view = LiveView(terminal(), clock, foot="Ctrl-C stops waiting.")
    view.watch(FollowedSteps(uuid4(), "digits"), "digits-1", {"Prefect": "http://127.0.0.1/run"})
    clock.now = 3
    assert drawn(view) == ["digits-1  3 s  Prefect", "Ctrl-C stops waiting."]


def test_links_lead_to_the_sandbox() -> None:
    board = Board(planned(("load", ())))
    view = LiveView(terminal())
    view.watch(board, "run", {"Prefect": "http://127.0.0.1/run"})
    board.in_sandbox("load", "sb-1", "https://modal.com/sb-1")
    view.console.print(view.picture())
    out = view.console.file
    assert isinstance(out, io.StringIO)
    assert ";https://modal.com/sb-1" in out.getvalue()
    assert ";http://127.0.0.1/run" in out.getvalue()


def test_what_happens_comes_before_what_waits() -> None:
    states = ["Completed"] * 5 + ["running", "waiting", "Failed", "starting"] + ["waiting for upstream"] * 5
    rows = [{"step": f"s{number}", "state": state} for number, state in enumerate(states)]
    shown, rest = pick(rows, 5)
    assert [row["step"] for row in shown] == ["s0", "s1", "s5", "s7", "s8"]
    assert rest == "5 waiting for upstream, 3 Completed, 1 waiting"
    assert pick(rows, 14) == (rows, "")


def test_a_thousand_steps_fit_into_a_small_terminal() -> None:
    board = Board(planned(*((f"step_{number}", ()) for number in range(1000))))
    view = LiveView(terminal(height=24))
    view.watch(board, "run", {})
    lines = drawn(view)
    assert len(lines) <= 24
    assert lines[-2] == "and 984 waiting"


def test_markup_in_a_steps_words_is_shown_as_it_is() -> None:
    board = Board(planned(("[bold]x", ())))
    view = LiveView(terminal())
    view.watch(board, "[red]run", {})
    board.ended("[bold]x", "Failed", "[/oops] not a tag")
    text = "\n".join(drawn(view))
    assert "[red]run" in text
    assert "[bold]x" in text
    assert "[/oops] not a tag" in text


def test_the_last_picture_stays() -> None:
    console = terminal()
    board = Board(planned(("load", ())))
    with LiveView(console) as view:
        view.watch(board, "run", {})
        view.say("Stopping.")
        board.ended("load", "Completed", "")
    out = console.file
    assert isinstance(out, io.StringIO)
    assert out.getvalue().rstrip("\n \x1b[?25h").rpartition("run")[2].count("Completed") == 1


class Broken:
    """Steps of which nothing can be said."""

    cost = None

    def table(self) -> list[Row]:
        raise ZeroDivisionError("a defect")


def test_what_can_not_be_drawn_is_said_instead() -> None:
    view = LiveView(terminal())
    view.watch(Broken(), "digits-1", {})
    head, why, foot = drawn(view)
    assert head == "digits-1"
    assert why == "Its steps can't be drawn: ZeroDivisionError: a defect"
    assert foot.startswith("Ctrl-C")
