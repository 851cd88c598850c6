"""What each end of a sandbox costs: `docs/semantics.md`, row by row, through the real SDK.

All ends strike at once, in one run, each a step of its own: what one of them costs must not be charged to another.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.lab import Lab, eventually


@dataclass(frozen=True)
class Row:
    """What an end costs in ``per_step`` mode, and what the two sides show of it.

    ``version`` counts ZenML's step runs: two where an own retry was used, one where the same step run went on.
    ``run_count`` is Prefect's, likewise. ``fresh`` says that the sandbox of the first attempt was used no more; None
    where it doesn't matter. ``exit_late`` is an exit with 1 after ZenML has heard of the step's success.
    """

    attempts: int
    version: int
    run_count: int
    fresh: bool | None = True


OWN_RETRY = {"attempts": 2, "version": 2, "run_count": 2}
INFRASTRUCTURE = {"attempts": 2, "version": 1, "run_count": 1}
TABLE = {
    "exception": Row(**OWN_RETRY, fresh=None),
    "exit": Row(**OWN_RETRY, fresh=None),
    "exit_late": Row(attempts=1, version=1, run_count=1, fresh=None),
    "kill": Row(**OWN_RETRY),
    "oom": Row(**OWN_RETRY),
    "timeout": Row(**OWN_RETRY),
    "terminate": Row(**OWN_RETRY),
    "evict": Row(**INFRASTRUCTURE),
    "lose": Row(**INFRASTRUCTURE),
}
STRUCK = ("kill", "oom", "terminate", "evict", "lose")
OF_EACH_KIND = ("exception", "kill", "evict")
"""The step's own, its sandbox's, and the infrastructure's; `tests/contract/test_modal_runner.py` has what each end of a
sandbox is, `tests/unit/test_outcome.py` what it costs."""


@pytest.fixture
def shapes(lab: Lab):  # type: ignore[no-untyped-def]
    import shapes

    return shapes


@pytest.mark.parametrize(
    ("backend", "ends"),
    [
        pytest.param("1", OF_EACH_KIND, id="v2-of each kind"),
        pytest.param("1", tuple(TABLE), marks=pytest.mark.slow, id="v2"),
        pytest.param("0", tuple(TABLE), marks=pytest.mark.slow, id="v1"),
    ],
)
def test_what_each_end_costs_per_step(
    lab: Lab, shapes, tmp_path, monkeypatch: pytest.MonkeyPatch, backend: str, ends: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MODAL_SANDBOX_V2", backend)
    strikes = [threading.Thread(target=strike, args=(lab, tmp_path, end)) for end in STRUCK if end in ends]
    for thread in strikes:
        thread.start()
    ran = lab.run(
        shapes.struck_or_done,
        lab.stack("modal"),
        settings={"execution_mode": "per_step", "max_parallelism": len(ends)},
        into=tmp_path,
        ends=list(ends),
        timeout=60,
    )
    for thread in strikes:
        thread.join()
    sandboxes = {end: [line["sandbox"] for line in ran.traces(end)] for end in ends}
    found = {
        end: Row(
            attempts=len(ran.traces(end)),
            version=ran.run.steps[end].version,
            run_count=ran.task_runs[end].run_count,
            fresh=None if TABLE[end].fresh is None else sandboxes[end][0] not in later_ones(sandboxes),
        )
        for end in ends
    }
    assert found == {end: TABLE[end] for end in ends}
    assert len({first for first, *_ in sandboxes.values()}) == len(ends), "side by side, each has its own sandbox"
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert set(ran.steps.values()) == {"completed"}


@pytest.mark.slow  # the contract suite has such sandboxes
def test_a_sandbox_that_never_starts(lab: Lab, shapes) -> None:
    lab.modal.set(init_failures=1)
    ran = lab.run(shapes.chain, lab.stack("modal"), settings={"execution_mode": "per_step"}, length=1)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert lab.sandboxes_by_step(ran) == {"one": 2}
    assert (ran.run.steps["one"].version, ran.task_runs["one"].run_count) == (1, 1)


def test_infrastructure_retries_are_used_up(lab: Lab, shapes) -> None:
    lab.modal.set(init_failures=2)
    ran = lab.run(
        shapes.chain,
        lab.stack("modal"),
        settings={"execution_mode": "per_step", "infrastructure_retries": 1},
        length=1,
    )
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"one": "failed"}
    assert "never started" in ran.task_runs["one"].state.message
    assert lab.sandboxes_by_step(ran) == {"one": 2}


@pytest.mark.slow  # above is one of each kind, in the other mode
@pytest.mark.parametrize(
    ("end", "version", "run_count"),
    [("evict", 1, 2), ("lose", 1, 2), ("oom", 2, 2), ("kill", 2, 2), ("terminate", 2, 2)],
)
def test_what_an_end_costs_in_pipeline_mode(lab: Lab, shapes, tmp_path, end: str, version: int, run_count: int) -> None:
    """The sandbox dies under a step: another one takes what is done as done and goes on."""
    striker = threading.Thread(target=strike, args=(lab, tmp_path, end))
    striker.start()
    ran = lab.run(shapes.struck, lab.stack("modal"), settings={"execution_mode": "pipeline"}, into=tmp_path, ends=[end])
    striker.join()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), ran.flow_run.state.message
    assert len(ran.traces(end)) == 2
    assert ran.run.steps[end].version == version
    assert ran.task_runs["struck"].run_count == run_count
    assert len(lab.sandboxes(ran)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
def test_a_pipeline_whose_time_is_over_is_not_tried_again(lab: Lab, shapes, tmp_path, retries: int) -> None:
    """Also where its step has a retry: another sandbox would have as little time."""
    settings = {"execution_mode": "pipeline", "timeout": 60}
    stack = lab.stack("modal")
    ran = lab.run(shapes.struck, stack, settings=settings, into=tmp_path, ends=["unstruck"], retries=retries)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"unstruck": "failed"}
    assert len(lab.sandboxes(ran)) == 1
    assert (len(ran.traces("unstruck")), ran.task_runs["struck"].run_count) == (1, 1)
    said = (ran.task_runs["struck"].state.message, ran.flow_run.state.message, str(ran.error))
    assert all("ran into its timeout" in message and "Raise `timeout`" in message for message in said), said


@pytest.mark.slow
def test_a_sandbox_that_dies_under_a_step_without_retries(lab: Lab, shapes, tmp_path) -> None:
    """In `pipeline` mode under CONTINUE_ON_FAILURE: that step has failed, the others go on in another sandbox."""
    striker = threading.Thread(target=strike, args=(lab, tmp_path, "oom"))
    striker.start()
    ran = lab.run(
        shapes.struck_beside_another,
        lab.stack("modal"),
        settings={"execution_mode": "pipeline", "max_parallelism": 1},
        options={"execution_mode": "continue_on_failure"},
        into=tmp_path,
    )
    striker.join()
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"oom": "failed", "other": "completed"}
    assert len(lab.sandboxes(ran)) == 2


@pytest.mark.slow  # tests/unit/test_outcome.py has its words, the table above its end
def test_a_step_without_retries_that_is_killed(lab: Lab, shapes, tmp_path) -> None:
    striker = threading.Thread(target=strike, args=(lab, tmp_path, "oom"))
    striker.start()
    ran = lab.run(
        shapes.struck,
        lab.stack("modal"),
        settings={"execution_mode": "per_step"},
        into=tmp_path,
        ends=["oom"],
        retries=0,
    )
    striker.join()
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"oom": "failed"}
    assert "ran out of memory" in ran.task_runs["oom"].state.message
    assert "ResourceSettings(memory=...)" in ran.task_runs["oom"].state.message
    assert "ran out of memory" in ran.run.steps["oom"].exception_info.traceback


def later_ones(sandboxes: dict[str, list[str]]) -> set[str]:
    """The sandboxes of all attempts but the first ones."""
    return {sandbox for _, *later in sandboxes.values() for sandbox in later}


def strike(lab: Lab, folder: Path, end: str) -> None:
    """Wait until the step's own code is under way, then strike the sandbox that it runs in."""
    trace = folder / f"{end}.jsonl"
    lines = eventually(lambda: trace.read_text() if trace.exists() else "", lambda text: "\n" in text, 120)
    getattr(lab.modal, end)(json.loads(lines.splitlines()[0])["sandbox"])
