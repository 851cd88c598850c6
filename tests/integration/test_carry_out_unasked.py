"""Nobody answers for longer than a runner waits whether there is a sandbox: the same one is asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils

from bridge.errors import RunnerUnavailable
from bridge.flow_run.carrying_out import carry_out
from bridge.flow_run.open_run import load_snapshot, load_stack
from bridge.runners.base import SandboxRequest
from bridge.runners.modal import ModalRunner
from bridge.runners.modal_sandbox import ModalSandbox
from bridge.submitting.submission import create_flow_run
from bridge.upstream_prefect import run_existing_flow_run
from tests.flows import flow_of
from tests.integration.lab import IMAGE, PROJECT, Lab, Ran, eventually

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("mode", ["per_step", "pipeline"])]

PATIENCE = 0.0
"""For how many seconds the runner waits here, and not two minutes: it asks once."""


class Carried:
    """``crashes.apart``, cold and on modal, whose flow has this runner and runs in a thread."""

    def __init__(self, lab: Lab, folder: Path, mode: str, runner: ModalRunner) -> None:
        import crashes

        self._lab = lab
        self._ran = Ran(folder)
        source_utils.set_custom_source_root(str(PROJECT))
        lab.activate(lab.stack("modal"))
        docker = DockerSettings(parent_image=IMAGE, skip_build=True)
        settings = {"docker": docker, "orchestrator": {"execution_mode": mode, "warm": False}}
        pipeline = crashes.apart.with_options(settings=settings)
        pipeline.prepare(str(folder))
        snapshot = load_snapshot(pipeline.create_snapshot(name=f"unasked-{folder.name}").id)
        run, plan = create_placeholder_run(snapshot), load_stack(snapshot)[1].plan(snapshot)
        flow_run, _ = create_flow_run(snapshot, run, plan)
        self.run_id, self._flow_run_id = run.id, flow_run.id
        flow = flow_of(lambda run: carry_out(run, runner), plan.pipeline)
        arguments = (flow, flow_run, dict(flow_run.parameters))
        self._thread = Thread(target=run_existing_flow_run, args=arguments, daemon=True)
        self._thread.start()

    def traces(self) -> dict[str, int]:
        """How often the code of each step has begun."""
        return {step: len(self._ran.traces(step)) for step in ("one", "two")}

    def statuses(self) -> dict[str, str]:
        """What ZenML says of the steps."""
        return {name: step.status.value for name, step in Client().get_pipeline_run(self.run_id).steps.items()}

    def warned(self, text: str) -> int:
        """How many warnings with this text are in the logs of the run."""
        chosen = LogFilter(flow_run_id={"any_": [self._flow_run_id]}, level={"ge_": 30})  # type: ignore[arg-type]
        with get_client(sync_client=True) as client:
            return sum(text in log.message for log in client.read_logs(chosen, limit=200))

    def running(self) -> list[Any]:
        """Its sandboxes that haven't ended."""
        return self._lab.running(self._lab.read(self._ran, self.run_id, begun=False))

    def end(self) -> Ran:
        """Wait for the end, and read both sides."""
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self._lab.read(self._ran, self.run_id)


def ended_right(lab: Lab, ran: Ran, mode: str) -> None:
    """Every sandbox and every step was there once."""
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), ran.flow_run.state.message
    assert {step: len(ran.traces(step)) for step in ran.steps} == {"one": 1, "two": 1}
    assert {step.version for step in ran.run.steps.values()} == {1}
    assert lab.sandboxes_by_step(ran) == ({"": 1} if mode == "pipeline" else {"one": 1, "two": 1})
    assert not eventually(lambda: lab.running(ran), lambda running: not running)


@pytest.fixture
def no_answers(lab: Lab) -> Iterator[None]:
    """Modal makes sandboxes, and no answer to a create arrives."""
    lab.modal.set(lost_replies=1000)
    yield
    lab.modal.set(lost_replies=0)


def test_the_answer_to_a_create_never_arrives(lab: Lab, tmp_path: Path, mode: str, no_answers: None) -> None:
    """The sandbox was made all the same: the next one that is asked for is this one."""
    carried = Carried(lab, tmp_path, mode, ModalRunner(outage=PATIENCE))
    assert eventually(carried.traces, lambda found: found == {"one": 1, "two": 1}, 120) == {"one": 1, "two": 1}
    lost = 1 if mode == "pipeline" else 2
    assert eventually(lambda: carried.warned("the runner couldn't be asked"), lambda found: found >= lost) == lost
    for step in ("one", "two"):
        (tmp_path / f"go-{step}-1").touch()
    ended_right(lab, carried.end(), mode)


class Late(ModalRunner):
    """It has made every sandbox, says once of each that it couldn't ask, and asks again only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.again = Event()
        self.asked: list[str] = []

    async def start(self, request: SandboxRequest) -> ModalSandbox:
        self.asked.append(request.name)
        if self.asked.count(request.name) == 1:
            await super().start(request)
            raise RunnerUnavailable("the answer was lost")
        await asyncio.to_thread(self.again.wait, 120)
        return await super().start(request)


def test_it_has_ended_before_it_is_asked_for_again(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Its name is free again by then; what it did is done all the same."""
    runner = Late()
    carried = Carried(lab, tmp_path, mode, runner)
    assert eventually(carried.traces, lambda found: found == {"one": 1, "two": 1}, 120) == {"one": 1, "two": 1}
    asked = 2 if mode == "pipeline" else 4
    assert eventually(lambda: len(runner.asked), lambda found: found >= asked, 60) == asked
    for step in ("one", "two"):
        (tmp_path / f"go-{step}-1").touch()
    done = {"one": "completed", "two": "completed"}
    assert eventually(carried.statuses, lambda found: found == done, 60) == done
    assert not eventually(carried.running, lambda running: not running)
    runner.again.set()
    ran = carried.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), ran.flow_run.state.message
    assert {step: len(ran.traces(step)) for step in ran.steps} == {"one": 1, "two": 1}
    assert {step.version for step in ran.run.steps.values()} == {1}
