"""Dynamic pipelines: what ended while their flow was dead is judged by its own end, and its output read to the last."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from zenml.client import Client
from zenml.models import PipelineRunResponse

from tests.integration.lab import PROJECT, Lab, Ran, eventually
from tests.integration.lives import Lives
from tests.integration.test_crash import LINES, away_from_the_first_create, said
from tests.integration.test_dynamic import zenml


def begun(lab: Lab, folder: Path, place: str) -> Lives:
    """A flow that is killed while a step runs in the function's sandbox, and another in its own."""
    lives = Lives(lab, folder).begin("dynamic", place, {})
    lives.until("apart")
    lives.until("here")
    lives.until_logged(f"apart 1 before {LINES - 1}")
    lives.until_logged(f"here 1 before {LINES - 1}")
    lives.kill()
    return lives


def _run(lives: Lives) -> PipelineRunResponse:
    return Client().get_pipeline_run(lives.under.run_id)


def states(lives: Lives) -> dict[str, str]:
    chosen = FlowRunFilter(id={"any_": [lives.under.flow_run_id]})  # type: ignore[arg-type]
    with get_client(sync_client=True) as client:
        return {run.name: run.state.name for run in client.read_task_runs(flow_run_filter=chosen) if run.state}


def end_of_apart(lives: Lives) -> str:
    return eventually(lambda: states(lives).get("apart", "Running"), lambda state: state != "Running", 120)


def lines(lab: Lab, ran: Ran, task_run: str, step: str, at_least: int) -> list[str]:
    return [line for line in lab.logs(ran.task_runs[task_run], at_least) if line.startswith(f"{step} ")]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_an_isolated_step_that_succeeded(lab: Lab, tmp_path: Path, place: str) -> None:
    """Its task run ends while the function still runs."""
    with begun(lab, tmp_path, place) as lives:
        lives.go("apart-1")
        lives.until_zenml({"apart": "completed", "here": "running"})
        assert states(lives)["apart"] == "Running"
        lives.go_on()
        assert (
            eventually(lambda: states(lives).get("apart", "Running"), lambda state: state != "Running", 120)
            == "Completed"
        )
        assert lives.under.ran.traces("here", "end") == []
        lives.go("here-1", "last-1")
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert ran.states == {"dynamic": "Completed", "apart": "Completed"}
    assert lines(lab, ran, "apart", "apart", 80) == said("apart", 1)
    assert {step: len(ran.traces(step)) for step in ("apart", "here", "last")} == {"apart": 1, "here": 1, "last": 1}


@pytest.mark.slow
def test_an_isolated_step_that_failed_and_is_tried_again(lab: Lab, tmp_path: Path) -> None:
    """ZenML has asked for the next attempt by then; the first one's task run says what its exception was."""
    with begun(lab, tmp_path, "modal") as lives:
        lives.fail("apart-1")
        lives.go("apart-1")
        assert eventually(lambda: _run(lives).steps["apart"].version, lambda version: version == 2, 60) == 2
        lives.go_on()
        lives.until("apart", 2)
        assert (
            eventually(lambda: states(lives).get("apart", "Running"), lambda state: state != "Running", 60) == "Failed"
        )
        lives.go("apart-2", "here-1", "last-1")
        ran = lives.end()
    assert ran.status == "completed", lives.log[-6000:]
    assert ran.states == {"dynamic": "Completed", "apart": "Failed", "apart (attempt 2)": "Completed"}
    assert "as told" in ran.task_runs["apart"].state.message
    assert set(said("apart", 1)) <= set(lines(lab, ran, "apart", "apart", 80))
    assert lab.sandboxes_by_step(ran) == {"": 1, "apart": 2}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_a_function_that_came_to_its_end(lab: Lab, tmp_path: Path, place: str) -> None:
    with begun(lab, tmp_path, place) as lives:
        lives.go("apart-1", "here-1", "last-1")
        lives.until_zenml(dict.fromkeys(("apart", "here", "last"), "completed"))
        assert eventually(lambda: _run(lives).status.value, lambda status: status == "completed", 60) == "completed"
        lives.go_on()
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert ran.states == {"dynamic": "Completed", "apart": "Completed"}
    assert lines(lab, ran, "apart", "apart", 80) == said("apart", 1)
    for step in ("here", "last"):
        assert lines(lab, ran, "dynamic", step, 160) == said(step, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "because"), [("time_out", "its timeout"), ("terminate", "terminated")])
def test_a_function_whose_sandbox_was_ended(lab: Lab, tmp_path: Path, how: str, because: str) -> None:
    """As while its flow lives: another sandbox would only cost as much again."""
    with begun(lab, tmp_path, "modal") as lives:
        getattr(lab.modal, how)(lives.under.ran.traces("here")[0]["sandbox"])
        lives.go_on()
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed"), lives.log[-6000:]
    assert because in ran.flow_run.state.message or because in ran.task_runs["dynamic"].state.message
    assert lab.sandboxes_by_step(ran) == {"": 1, "apart": 1}
    assert not lab.running(ran)


@pytest.mark.slow
def test_a_function_that_failed_and_is_tried_again(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end, which nobody had seen, is no end of the new try, which has a sandbox of its own."""
    monkeypatch.chdir(PROJECT)  # where ZenML's commands look for the code
    with begun(lab, tmp_path, "modal") as lives:
        lives.fail("here-1")
        lives.fail("here-2")
        lives.go("apart-1", "here-1", "here-2")
        assert eventually(lambda: _run(lives).status.value, lambda status: status == "failed", 120) == "failed"
        lives.go_on().end_of_process()  # which only ends what is left: ZenML's run has failed
        zenml("retry", lives.under.run_id)
        # Prefect records the states of task runs a little later, and the one before was final too.
        ran = eventually(
            lambda: lab.read(Ran(tmp_path), lives.under.run_id),
            lambda ran: "as told" in ran.task_runs["dynamic"].state.message,
            30,
        )
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert "as told" in ran.task_runs["dynamic"].state.message
    assert lab.sandboxes_by_step(ran) == {"": 2, "apart": 1}
    assert {step: len(ran.traces(step)) for step in ("apart", "here")} == {"apart": 1, "here": 2}


@pytest.mark.slow
def test_an_isolated_step_whose_sandbox_prefect_never_heard_of(lab: Lab, tmp_path: Path) -> None:
    """ZenML says which one it was: it was killed, and isn't taken for lost because its name is free."""
    with Lives(lab, tmp_path) as lives:
        with away_from_the_first_create(lab):
            lives.begin("dynamic", "modal", {})
            lives.until("apart")
            lives.until("here")
            lives.until_zenml({"apart": "running", "here": "running"})
            lives.kill()
        lab.modal.kill(lives.under.ran.traces("apart")[0]["sandbox"])
        lives.go("apart-2", "here-1", "last-1")
        ran = lives.go_on(sure=True).end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert (len(ran.traces("apart")), ran.run.steps["apart"].version) == (2, 2)
    assert ran.states == {"dynamic": "Completed", "apart": "Failed", "apart (attempt 2)": "Completed"}
