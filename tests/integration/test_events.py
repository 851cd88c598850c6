"""A step's life as events in Prefect; and the automation that the documents offer, which waits for them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests import servers
from tests.integration.lab import Lab, eventually
from tests.integration.workers import BIN
from tests.serving import serving

OFFERED = servers.ROOT / "deployments" / "automations" / "gpu-step-failed-twice.yaml"
NO_BLOCK = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def hook() -> Iterator[tuple[str, queue.Queue[dict[str, str]]]]:
    """Somebody who is told: an address, and what came there."""
    told: queue.Queue[dict[str, str]] = queue.Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(Hook) as server:
        yield f"http://127.0.0.1:{server.server_port}/", told


@pytest.fixture
def automation(lab: Lab, hook: tuple[str, queue.Queue[dict[str, str]]], tmp_path: Path) -> Iterator[None]:
    """The automation that the documents offer, made as they say."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.client.orchestration import get_client

    block = CustomWebhookNotificationBlock(
        name="hook", url=hook[0], json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    block_id = block.save(f"hook-{uuid4().hex[:6]}", _sync=True)
    text = OFFERED.read_text()
    assert text.count(NO_BLOCK) == 1
    mine = tmp_path / OFFERED.name
    mine.write_text(text.replace(NO_BLOCK, str(block_id)))
    command = [BIN / "prefect", "automation", "create", "--from-file", mine]
    said = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    yield
    with get_client(sync_client=True) as client:
        for made in client.read_automations_by_name("zenml: a GPU step failed twice"):
            client.delete_automation(made.id)


def events_of(lab: Lab, run: Any, at_least: int) -> list[dict[str, Any]]:
    """The events of a run's steps, in the order in which they occurred."""

    def read() -> list[dict[str, Any]]:
        asked = {"event": {"prefix": ["zenml.step."]}, "related": {"id": [f"zenml.run.{run.id}"]}}
        answer = httpx.post(f"{lab.prefect.url}/api/events/filter", json={"filter": asked, "limit": 50})
        found: list[dict[str, Any]] = answer.raise_for_status().json()["events"]
        return sorted(found, key=lambda event: event["occurred"])

    found: list[dict[str, Any]] = eventually(read, lambda events: len(events) >= at_least)
    return found


def life(events: list[dict[str, Any]], step: str) -> list[tuple[str, int]]:
    """What happened to a step, and in which attempt."""
    return [
        (event["event"].removeprefix("zenml.step."), event["payload"]["attempt"])
        for event in events
        if event["resource"]["zenml.step"] == step
    ]


TWICE = [("started", 1), ("failed", 1), ("retried", 2), ("started", 2), ("failed", 2)]


@pytest.mark.slow  # an automation that is optional
def test_a_gpu_step_that_fails_twice_is_told_of(
    lab: Lab, hook: tuple[str, queue.Queue[dict[str, str]]], automation: None, fresh_image: str
) -> None:
    import eventful

    lab.modal.image_pull_fails(1)
    options = {"execution_mode": "continue_on_failure"}
    ran = lab.run(
        eventful.eventful,
        lab.stack("modal"),
        settings={"execution_mode": "per_step"},
        options=options,
        image=fresh_image,
    )
    assert ran.steps == {"fine": "completed", "on_gpu": "failed", "on_cpu": "failed"}

    events = events_of(lab, ran.run, 13)
    lives = {step: life(events, step) for step in ran.steps}
    (unlucky,) = (step for step, told in lives.items() if ("lost", 1) in told)  # whose image was pulled first
    assert lives[unlucky].pop(0) == ("lost", 1)
    assert lives == {"fine": [("started", 1), ("finished", 1)], "on_gpu": TWICE, "on_cpu": TWICE}
    (failed, _) = [
        event for event in events if event["event"] == "zenml.step.failed" and "zenml.gpu" in event["resource"]
    ]
    assert failed["resource"] == {
        "prefect.resource.id": f"zenml.run.{ran.run.id}.step.on_gpu",
        "prefect.resource.name": "on_gpu",
        "zenml.step": "on_gpu",
        "zenml.pipeline": "eventful",
        "zenml.run.id": str(ran.run.id),
        "zenml.stack": ran.run.stack.name,
        "zenml.gpu": "1 x T4",
    }
    assert "as told" in failed["payload"]["why"]
    related = {one["prefect.resource.role"]: one["prefect.resource.id"] for one in failed["related"]}
    assert related["flow-run"] == f"prefect.flow-run.{ran.flow_run.id}"
    assert related["task-run"] == f"prefect.task-run.{ran.task_runs['on_gpu'].id}"
    assert related["zenml-run"] == f"zenml.run.{ran.run.id}"
    boxes = {box.id for box in lab.sandboxes(ran)}
    assert {event["payload"]["sandbox"] for event in events if event["event"] == "zenml.step.started"} <= boxes

    told = hook[1].get(timeout=30)
    assert told["subject"] == "on_gpu failed twice"
    assert "Step on_gpu of eventful (1 x T4)" in told["body"]
    assert "Attempt 2: " in told["body"]
    assert f"Flow run {ran.flow_run.name}: " in told["body"]
    assert hook[1].empty(), "nobody asked about the step without a GPU"


@pytest.mark.slow
def test_a_whole_pipeline_in_one_sandbox(lab: Lab) -> None:
    """What the flow sees of the steps comes from ZenML; a life too quick to be seen is told all the same."""
    import eventful

    ran = lab.run(eventful.mended, lab.stack("process"), settings={"execution_mode": "pipeline"})
    assert ran.status == "completed"
    events = events_of(lab, ran.run, 7)
    assert life(events, "fine") == [("started", 1), ("finished", 1)]
    assert life(events, "again") == [*TWICE[:4], ("finished", 2)]


@pytest.mark.slow
def test_a_dynamic_pipeline(lab: Lab) -> None:
    """Events name an isolated step's own task run, one for each attempt, and for inline steps the function's."""
    import eventful
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    ran = lab.run(eventful.decided, lab.stack("process"))
    assert ran.status == "completed"
    events = events_of(lab, ran.run, 7)
    assert life(events, "fine") == [("started", 1), ("finished", 1)]
    assert life(events, "apart") == [*TWICE[:4], ("finished", 2)]
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [ran.flow_run.id]}))  # type: ignore[arg-type]
    task_runs = {task_run.name: f"prefect.task-run.{task_run.id}" for task_run in found}
    assert set(task_runs) == {"decided", "apart", "apart (attempt 2)"}
    of = {("fine", 1): "decided", ("apart", 1): "apart", ("apart", 2): "apart (attempt 2)"}
    for event in events:
        related = {one["prefect.resource.role"]: one["prefect.resource.id"] for one in event["related"]}
        whose = of[event["resource"]["zenml.step"], event["payload"]["attempt"]]
        assert related["task-run"] == task_runs[whose], event
