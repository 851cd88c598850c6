"""A flow goes on with a dynamic pipeline, and nobody can be asked at first where its isolated step is."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Pending
from zenml.client import Client

from bridge.errors import RunnerUnavailable
from bridge.flow_run.carrying_out import carry_out
from bridge.runners.process import ProcessRunner, ProcessSandbox
from bridge.upstream_prefect import run_existing_flow_run
from tests.flows import flow_of
from tests.integration.lab import Lab
from tests.integration.lives import Lives


class AwayAtFirst(ProcessRunner):
    """Local processes, of which the first two questions by id aren't answered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.answers = Event()

    async def by_id(self, sandbox_id: str) -> ProcessSandbox | None:
        self.asked += 1
        if self.asked <= 2:
            raise RunnerUnavailable("nobody answers")
        self.answers.set()
        return await super().by_id(sandbox_id)


def go_on(flow_run_id: UUID, name: str, runner: ProcessRunner) -> Thread:
    """Go on with a flow run on this runner, in a thread, as `modal-prefect resume` does."""
    again = flow_of(lambda run: carry_out(run, runner, life=2), name)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Pending(), force=True)
        flow_run = client.read_flow_run(flow_run_id)
    arguments = (again, flow_run, dict(flow_run.parameters))
    thread = Thread(target=run_existing_flow_run, args=arguments, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_an_isolated_step_is_asked_after_again(lab: Lab, tmp_path: Path) -> None:
    """It goes on meanwhile, and nothing of it has failed."""
    runner = AwayAtFirst()
    with Lives(lab, tmp_path) as lives:
        lives.begin("dynamic", "process", {})
        lives.until("apart")
        lives.until("here")
        lives.until_logged("apart 1 before 39")
        lives.kill()
        life = go_on(lives.under.flow_run_id, "dynamic", runner)
        assert runner.answers.wait(60), Client().get_pipeline_run(lives.under.run_id).steps["apart"].exception_info
        lives.go("apart-1", "here-1", "last-1")
        life.join(120)
        assert not life.is_alive()
        ran = lab.read(lives.under.ran, lives.under.run_id)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.states == {"dynamic": "Completed", "apart": "Completed"}
    assert {step: len(ran.traces(step)) for step in ("apart", "here", "last")} == {"apart": 1, "here": 1, "last": 1}
    assert runner.asked == 3
