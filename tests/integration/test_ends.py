"""What each end of a sandbox costs, by the table in `ends.py`, through the real SDK.

All ends strike at once, in one run, each a step of its own: what one of them costs must not be charged to another.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from bridge.flow_run.outcome import Cost
from tests.integration.ends import ENDS, STRUCK
from tests.integration.lab import Lab, Ran, eventually
from tests.integration.under import Under


@dataclass(frozen=True)
class Row:
    """What the two sides show of an end, in ``per_step`` mode.

    ``zenml`` are the step's runs in ZenML: two where an own retry was used, one where the same step run went on.
    ``run_count`` is Prefect's, likewise. ``fresh`` says that the sandbox of the first attempt was used no more; None
    where it doesn't matter, since the sandbox lives on.
    """

    attempts: int
    zenml: tuple[str, ...]
    run_count: int
    fresh: bool | None


RETRIED, COMPLETED = ("retried", "completed"), ("completed",)
SHOWN = {
    Cost.NOTHING: Row(1, COMPLETED, 1, fresh=True),
    Cost.OWN_RETRY: Row(2, RETRIED, 2, fresh=True),
    Cost.INFRASTRUCTURE_RETRY: Row(2, COMPLETED, 1, fresh=True),
}
OF_THE_STEP_ALONE = ("exception", "exit", "exit_late")
"""Ends that leave a warm sandbox alive."""
TABLE = {
    end: replace(SHOWN[costs.per_step], fresh=None if end in OF_THE_STEP_ALONE else True)
    for end, costs in ENDS.items()
    if end != "never_starts"  # which isn't the end of a sandbox that a step could be seen in
}
WHY = {
    "exception": "ValueError: the first attempt",
    "exit": "exited with 0",
    "kill": "killed by signal 9",
    "oom": "ran out of memory",
    "timeout": "ran into its timeout",
    "terminate": "terminated from outside",
}
"""What ZenML says of the attempt that cost an own retry."""
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
    step_runs = attempts_in_zenml(ran)
    found = {
        end: Row(
            attempts=len(ran.traces(end)),
            zenml=tuple(step_run.status.value for step_run in step_runs[end]),
            run_count=ran.task_runs[end].run_count,
            fresh=None if TABLE[end].fresh is None else sandboxes[end][0] not in later_ones(sandboxes),
        )
        for end in ends
    }
    assert found == {end: TABLE[end] for end in ends}
    for end in ends:
        if TABLE[end].zenml == RETRIED:
            assert WHY[end] in step_runs[end][0].exception_info.traceback, end
    assert len({first for first, *_ in sandboxes.values()}) == len(ends), "side by side, each has its own sandbox"
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert set(ran.steps.values()) == {"completed"}


@pytest.mark.slow  # the contract suite has such sandboxes
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_a_sandbox_that_never_starts(lab: Lab, shapes, mode: str) -> None:
    """It costs no own retry, of which the step has none. In `pipeline` mode Prefect tries the sandbox again."""
    lab.modal.set(init_failures=1)
    ran = lab.run(shapes.chain, lab.stack("modal"), settings={"execution_mode": mode}, length=1)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert len(lab.sandboxes(ran)) == 2
    assert [step_run.status.value for step_run in attempts_in_zenml(ran)["one"]] == ["completed"]
    (task_run,) = ran.task_runs.values()
    assert task_run.run_count == (1 if mode == "per_step" else 2)
    # In `pipeline` mode the pause before the second sandbox is Prefect's; tests/unit/test_again.py has the other one.
    with get_client(sync_client=True) as client:
        states = [state.name for state in client.read_task_run_states(task_run.id)]
    assert ("AwaitingRetry" in states) == (mode == "pipeline"), states


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


@pytest.mark.slow  # tests/host/test_pipeline.py has all but the late exit
def test_what_ends_of_the_step_alone_cost_in_pipeline_mode(lab: Lab, shapes) -> None:
    """Its own retries are the sandbox's program's: Prefect sees one attempt of the one task."""
    settings = {"execution_mode": "pipeline"}
    ran = lab.run(shapes.struck_or_done, lab.stack("modal"), settings=settings, ends=[*OF_THE_STEP_ALONE])
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), ran.flow_run.state.message
    found = {
        end: [step_run.status.value for step_run in step_runs] for end, step_runs in attempts_in_zenml(ran).items()
    }
    assert found == {end: list(SHOWN[ENDS[end].pipeline].zenml) for end in OF_THE_STEP_ALONE}
    assert {end: len(ran.traces(end)) for end in found} == {end: len(statuses) for end, statuses in found.items()}
    assert ran.task_runs["struck_or_done"].run_count == 1
    assert len(lab.sandboxes(ran)) == 1


@pytest.mark.slow  # above is one of each kind, in the other mode
@pytest.mark.parametrize("end", STRUCK)
def test_what_an_end_costs_in_pipeline_mode(lab: Lab, shapes, tmp_path, end: str) -> None:
    """The sandbox dies under a step: another one takes what is done as done and goes on. Prefect tries it again."""
    striker = threading.Thread(target=strike, args=(lab, tmp_path, end))
    striker.start()
    ran = lab.run(shapes.struck, lab.stack("modal"), settings={"execution_mode": "pipeline"}, into=tmp_path, ends=[end])
    striker.join()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), ran.flow_run.state.message
    assert len(ran.traces(end)) == 2
    shown = tuple(step_run.status.value for step_run in attempts_in_zenml(ran)[end])
    assert shown == SHOWN[ENDS[end].pipeline].zenml
    assert ran.task_runs["struck"].run_count == 2
    assert len(lab.sandboxes(ran)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
def test_a_pipeline_whose_time_is_over_is_not_tried_again(lab: Lab, shapes, tmp_path, retries: int) -> None:
    """Also where its step has a retry: another sandbox would have as little time."""
    assert ENDS["timeout"].pipeline is Cost.EVERYTHING
    settings = {"execution_mode": "pipeline", "timeout": 60}
    stack = lab.stack("modal")
    ran = lab.run(shapes.struck, stack, settings=settings, into=tmp_path, ends=["unstruck"], retries=retries)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"unstruck": "failed"}
    assert len(lab.sandboxes(ran)) == 1
    assert (len(ran.traces("unstruck")), ran.task_runs["struck"].run_count) == (1, 1)
    said = (ran.task_runs["struck"].state.message, ran.flow_run.state.message, str(ran.error))
    words = ("The pipeline ran into its timeout", "Raise `timeout` in the settings of the pipeline")
    assert all(word in message for message in said for word in words), said


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


@pytest.mark.parametrize(
    "end", ["oom", pytest.param("terminate", marks=pytest.mark.slow), pytest.param("kill", marks=pytest.mark.slow)]
)
def test_a_sandbox_that_dies_while_a_step_waits_for_its_retry(lab: Lab, shapes, tmp_path, end: str) -> None:
    """In `pipeline` mode: nothing ran in it. The step has its retry, after its delay, in another one."""
    settings, delay = {"execution_mode": "pipeline"}, 10
    under = Under(lab, tmp_path).start(shapes.retried, "modal", settings, retries=1, delay=delay)
    under.until_steps({"fail_first": "retrying"})
    getattr(lab.modal, end)(under.ran.traces("fail_first")[0]["sandbox"])
    ran = under.join(150)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), ran.flow_run.state.message
    attempts = attempts_in_zenml(ran)
    shown = {step: [one.status.value for one in step_runs] for step, step_runs in attempts.items()}
    assert shown == {"fail_first": ["retried", "completed"], "after": ["completed"]}
    first, second = lab.sandboxes(ran)
    tried_again = attempts["fail_first"][1].start_time.replace(tzinfo=timezone.utc).timestamp()
    assert tried_again - max(first.created_at, second.created_at) >= delay, "it begins anew in the new one"


@pytest.mark.slow
def test_a_sandbox_that_dies_again_before_anything_happens(lab: Lab, shapes, tmp_path) -> None:
    """It might go on so for ever."""
    settings = {"execution_mode": "pipeline"}
    under = Under(lab, tmp_path).start(shapes.retried, "modal", settings, retries=1, delay=30)
    under.until_steps({"fail_first": "retrying"})
    lab.modal.oom(under.ran.traces("fail_first")[0]["sandbox"])
    boxes = eventually(
        lambda: lab.sandboxes_of(under.run_id), lambda found: [box.status for box in found][1:] == ["running"], 60
    )
    lab.modal.oom(boxes[1].id)
    ran = under.join(150)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"fail_first": "failed"}
    assert "ran out of memory" in ran.flow_run.state.message
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


def attempts_in_zenml(ran: Ran) -> dict[str, list[Any]]:
    """All step runs of each step, the first attempt first."""
    from zenml.client import Client

    found = Client().list_run_steps(pipeline_run_id=ran.run.id, exclude_retried=False, size=100, hydrate=True).items
    by_step: dict[str, list[Any]] = {}
    for step_run in sorted(found, key=lambda one: one.version):
        by_step.setdefault(step_run.name, []).append(step_run)
    return by_step


def later_ones(sandboxes: dict[str, list[str]]) -> set[str]:
    """The sandboxes of all attempts but the first ones."""
    return {sandbox for _, *later in sandboxes.values() for sandbox in later}


def strike(lab: Lab, folder: Path, end: str) -> None:
    """Wait until the step's own code is under way, then strike the sandbox that it runs in."""
    trace = folder / f"{end}.jsonl"
    lines = eventually(lambda: trace.read_text() if trace.exists() else "", lambda text: "\n" in text, 120)
    getattr(lab.modal, end)(json.loads(lines.splitlines()[0])["sandbox"])
