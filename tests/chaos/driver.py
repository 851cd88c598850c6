"""Runs one case: calls its pipeline, strikes it, and reads on both sides what came of it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from zenml.client import Client

from tests.chaos import traces
from tests.chaos.case import WARM_TIMEOUT, Case
from tests.chaos.life import Flow
from tests.chaos.seen import ATTEMPT, Sandbox, Seen, TaskRun
from tests.chaos.striker import Striker
from tests.chaos.yard import Yard
from tests.integration.lab import eventually

LOOK_SECONDS = 0.05
REFUSED = "this run is failed already"
"""What `modal-prefect resume` says of a run that has failed meanwhile."""
UNANSWERED = "Error: Prefect's API"
"""How `modal-prefect resume` begins its last words where Prefect went away while it only looked what there is."""
CALM = {"stream_delay": 0.0, "broken_streams": 0, "init_failures": 0, "lost_replies": 0, "unavailable_until": 0.0}


def fill_cache(yard: Yard, pipeline: str = "first_of_all") -> None:
    """Run the one step whose result the cached steps of all cases have; dynamic ones have another pipeline for it."""
    folder = yard.folder / "first"
    folder.mkdir()
    flow = Flow(folder, dict(os.environ))
    options = {"stack": yard.stack, "settings": {}, "pipeline": pipeline}
    flow.begin(options, {"base": yard.base})
    eventually(flow.alive, lambda alive: not alive, 180)
    assert (Path(yard.base) / "known.jsonl").exists(), flow.log[-5000:]


def run_case(case: Case, yard: Yard, seconds: float) -> tuple[Seen, str]:
    """Run a case; return what was seen of it and what its flow printed. It has ``seconds`` for it."""
    folder = yard.folder / f"case-{case.seed}"
    folder.mkdir()
    (folder / "case.json").write_text(case.as_json())
    known = len(traces.lines_of(Path(yard.base), "known"))
    yard.modal.set(**{**CALM, "init_failures": case.init_failures, "lost_replies": case.lost_replies})
    flow = Flow(folder, {**os.environ, "MODAL_SANDBOX_V2": "1" if case.backend == 2 else "0"})
    deadline = time.monotonic() + seconds
    name = f"chaos-{case.seed}-{folder.parent.name}"
    try:
        flow.begin(_options(case, yard, name), _arguments(case, yard, folder))
        run = _run(name, flow)
        if run is None:
            return Seen(hung="no run came of it"), flow.log
        striker = Striker(case, yard, folder, flow, run.id, UUID(run.orchestrator_run_id))
        pause = threading.Event()
        failed_without_flow = None
        while time.monotonic() < deadline:
            striker.look()
            if not flow.alive():
                if flow.lives > 1 and flow.last_words.startswith(UNANSWERED):
                    flow.lives -= 1  # nothing has begun; who typed it types it again
                    flow.go_on(run.id)
                    continue
                if REFUSED not in flow.log:
                    break
                # It failed while its flow was dead. What runs comes to its end, and then somebody asks again.
                failed_without_flow = failed_without_flow or traces.now()
                if _is_over(UUID(run.orchestrator_run_id)):
                    break
                if not (_some_run(run.id) and any(_lives(box) for box in _boxes(yard, run.id))):
                    flow.go_on(run.id)
                    eventually(flow.alive, lambda alive: not alive, 60)
                    break
            pause.wait(LOOK_SECONDS)  # nothing tells of a line in a file
        hung = f"the flow was still at it after {seconds:.0f} s" if flow.alive() else ""
        seen = replace(_read(case, yard, folder, run.id, striker, hung), failed_without_flow=failed_without_flow)
    finally:
        flow.kill()
        yard.modal.set(**CALM)
        _end_sandboxes(yard)
    if len(traces.lines_of(Path(yard.base), "known")) > known:
        return Seen(hung="a cached step ran"), flow.log
    return seen, flow.log


def _options(case: Case, yard: Yard, name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "max_parallelism": case.max_parallelism,
        "infrastructure_retries": case.infrastructure_retries,
    }
    if case.mode != "dynamic":
        settings |= {"execution_mode": case.mode, "warm": case.warm}
    return {
        "stack": yard.stack,
        "settings": settings,
        "pipeline": "chaos_dynamic" if case.mode == "dynamic" else "chaos",
        "execution_mode": case.failure_mode,
        "run_name": name,
    }


def _arguments(case: Case, yard: Yard, folder: Path) -> dict[str, Any]:
    steps = []
    for step in case.steps:
        given = {name: value for name, value in asdict(step).items() if name != "strikes"}
        steps.append(
            {**given, "upstream": list(step.upstream), "timeout": WARM_TIMEOUT if case.has_timeout(step) else 0}
        )
    return {"folder": str(folder), "base": yard.base, "steps": steps}


def _run(name: str, flow: Flow) -> Any:
    def read() -> Any:
        try:
            run = Client().get_pipeline_run(name)
        except KeyError:
            return None
        return run if run.orchestrator_run_id else None

    return eventually(read, lambda run: run is not None or not flow.alive(), 120)


def _read(case: Case, yard: Yard, folder: Path, run_id: UUID, striker: Striker, hung: str) -> Seen:
    run = Client().get_pipeline_run(run_id)
    flow_run, task_runs = yard.lab.read_flow_run(UUID(run.orchestrator_run_id))
    if not hung and not flow_run.state.is_final():
        hung = f"Prefect's flow run is {flow_run.state.name}, its process has ended"
    boxes = eventually(lambda: _boxes(yard, run_id), lambda found: not any(_lives(box) for box in found), 15)
    logs: dict[str, list[str]] = {}
    for name, task_run in sorted(task_runs.items()):  # of a dynamic pipeline's step each attempt is a task run
        logs.setdefault("" if case.mode == "pipeline" else name.partition(ATTEMPT)[0], []).extend(_logs(yard, task_run))
    return Seen(
        attempts={step.name: traces.attempts_of(folder, step.name) for step in case.steps},
        strikes=striker.strikes,
        sandboxes=[
            Sandbox(box.id, box.tags.get("zenml_step", ""), box.status, box.created_at, box.seconds) for box in boxes
        ],
        alive=[box.id for box in boxes if _lives(box)],
        run=run.status.value,
        flow_run=str(flow_run.state.name),
        step_runs=_step_runs(run_id),
        task_runs={
            name: TaskRun(str(task_run.state.name), task_run.run_count, task_run.state.message or "")
            for name, task_run in task_runs.items()
        },
        logs=logs,
        hung=hung,
    )


def _is_over(flow_run_id: UUID) -> bool:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    return state is not None and state.is_final()


def _some_run(run_id: UUID) -> bool:
    return any(step.status.value == "running" for step in Client().get_pipeline_run(run_id).steps.values())


def _boxes(yard: Yard, run_id: UUID) -> list[Any]:
    return [box for box in yard.modal.sandboxes() if box.tags.get("zenml_run_id") == str(run_id)]


def _lives(box: Any) -> bool:
    return box.status in ("running", "pending")


def _end_sandboxes(yard: Yard) -> None:
    """Nothing of a case that went wrong is to disturb the next one."""
    for box in yard.modal.sandboxes():
        if _lives(box):
            yard.modal.terminate(box.id)


def _step_runs(run_id: UUID) -> dict[str, list[str]]:
    found: dict[str, list[tuple[int, str]]] = {}
    page = 1
    while True:
        items = Client().list_run_steps(pipeline_run_id=run_id, exclude_retried=False, size=500, page=page).items
        for item in items:
            found.setdefault(item.name, []).append((item.version, item.status.value))
        if len(items) < 500:
            return {name: [status for _, status in sorted(versions)] for name, versions in found.items()}
        page += 1


def _logs(yard: Yard, task_run: Any) -> list[str]:
    return yard.lab.logs(task_run, at_least=0)
