"""ZenML can't be asked how an isolated step is: that says nothing of the step, which is asked after again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from prefect.client.orchestration import get_client
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunUpdate, StepRunResponse, StepRunUpdate
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils
from zenml.utils.time_utils import utc_now

from bridge.flow import zenml_pipeline
from bridge.flow_run.open_run import load_snapshot, load_stack
from bridge.orchestrator import ModalPrefectOrchestrator
from bridge.upstream_prefect import run_existing_flow_run
from bridge.zenml_side.run_status import bind_run
from tests.integration.begun import begin, dynamic_step
from tests.integration.lab import IMAGE, PROJECT, Lab, Ran, eventually
from tests.integration.test_outages import gone
from tests.integration.under import Under
from tests.serving import serving

BUILT_IN = {
    "module": "zenml.materializers.built_in_materializer",
    "attribute": "BuiltInMaterializer",
    "type": "internal",
}
Away = Callable[[Lab], AbstractContextManager[None]]


@contextmanager
def answering(status: int) -> Iterator[list[str]]:
    """Every request of this process to ZenML's server has this answer; yields which there were."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    session = session_of_zenml()
    with serving(Handler) as server:
        session.proxies["http"] = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield asked
        finally:
            del session.proxies["http"]


@contextmanager
def unavailable(lab: Lab) -> Iterator[None]:
    """As by a load balancer with no server behind it."""
    with answering(503):
        yield


@contextmanager
def refused(lab: Lab) -> Iterator[None]:
    with gone(lab.zenml):
        yield


WAYS = pytest.mark.parametrize("away", [unavailable, refused])
pytestmark = pytest.mark.slow


def session_of_zenml() -> requests.Session:
    store: Any = Client().zen_store
    session: requests.Session = store.session
    return session


@pytest.fixture
def impatient(lab: Lab) -> Iterator[None]:
    """ZenML's client gives up at once, and not after half a minute of refused connections or many of 503."""
    adapters = [adapter for adapter in session_of_zenml().adapters.values() if isinstance(adapter, HTTPAdapter)]
    before = [adapter.max_retries for adapter in adapters]
    for adapter in adapters:
        adapter.max_retries = Retry(total=1, backoff_factor=0, status_forcelist=[503], allowed_methods=None)
    yield
    for adapter, retries in zip(adapters, before, strict=True):
        adapter.max_retries = retries


@pytest.fixture
def step_run(lab: Lab, tmp_path: Path, impatient: None) -> StepRunResponse:
    """One that runs, as far as ZenML knows."""
    import shapes

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    pipeline = shapes.chain.with_options(enable_cache=False)
    pipeline.prepare(str(tmp_path))
    snapshot = load_snapshot(pipeline.create_snapshot(name=f"unasked-{uuid4().hex[:8]}").id)
    return begin(create_placeholder_run(snapshot, str(uuid4())))


def orchestrator_of(step_run: StepRunResponse) -> ModalPrefectOrchestrator:
    run = Client().get_pipeline_run(step_run.pipeline_run_id)
    assert run.snapshot is not None
    return load_stack(load_snapshot(run.snapshot.id))[1]


@WAYS
def test_the_status_is_no_guess(lab: Lab, step_run: StepRunResponse, away: Away) -> None:
    orchestrator = orchestrator_of(step_run)
    before = Client().get_run_step(step_run.id)
    with away(lab), pytest.raises(requests.exceptions.RequestException):
        orchestrator.get_isolated_step_status(step_run)
    after = Client().get_run_step(step_run.id)
    assert (after.status, after.updated) == (ExecutionStatus.RUNNING, before.updated)
    assert orchestrator.get_isolated_step_status(step_run) is ExecutionStatus.RUNNING


@WAYS
def test_who_waits_goes_on(
    lab: Lab, step_run: StepRunResponse, away: Away, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    orchestrator = orchestrator_of(step_run)
    # Of its own logger: a flow that ran in this process before has taken `bridge` from the root's handlers.
    logger = logging.getLogger("bridge.dynamic_pipelines.asks")
    logger.addHandler(caplog.handler)
    request.addfinalizer(lambda: logger.removeHandler(caplog.handler))
    with ThreadPoolExecutor(1) as threads:
        with away(lab):
            waiting = threads.submit(orchestrator.wait_for_isolated_step, step_run)
            eventually(lambda: caplog.text.count("asking again"), lambda said: said >= 2 or waiting.done())
            assert not waiting.done(), waiting.exception()
        Client().zen_store.update_run_step(
            step_run.id, StepRunUpdate(status=ExecutionStatus.FAILED, end_time=utc_now())
        )
        assert waiting.result(60) is ExecutionStatus.FAILED


def test_a_server_in_trouble_ends_no_run(lab: Lab, tmp_path: Path) -> None:
    """Its database is away: it answers 500 to whatever the flow asks, for a while."""
    import dynamics

    under = Under(lab, tmp_path).start(dynamics.held, "process", {})
    under.until_steps({"hangs": "running", "hangs_here": "running"})
    with answering(500) as asked:
        assert eventually(lambda: len(asked), lambda number: number >= 10, 60) >= 10
    (tmp_path / "go").touch()
    (tmp_path / "go-here").touch()
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), ran.error
    assert {step: len(ran.traces(step)) for step in ("hangs", "hangs_here", "add")} == {
        "hangs": 1,
        "hangs_here": 1,
        "add": 1,
    }


@pytest.mark.parametrize("place", ["process", "modal"])
def test_a_step_for_which_nobody_has_asked_yet(lab: Lab, tmp_path: Path, place: str) -> None:
    """The function's sandbox was lost after it had begun the step run and before it asked for its sandbox."""
    import dynamics

    lab.activate(lab.stack(place))
    source_utils.set_custom_source_root(str(PROJECT))
    settings = {"docker": DockerSettings(parent_image=IMAGE, skip_build=True)}
    pipeline = dynamics.held.with_options(parameters={"folder": str(tmp_path)}, settings=settings)
    snapshot = load_snapshot(pipeline.create_snapshot(name=f"unasked-{uuid4().hex[:8]}").id)
    run = create_placeholder_run(snapshot)
    hangs = dynamic_step(
        run,
        "hangs",
        "dynamics.hangs",
        runtime="isolated",
        enable_cache=False,
        parameters={"folder": str(tmp_path), "seconds": 0.1},
        outputs={"output": {"materializer_source": [BUILT_IN]}},
    )
    step_run = begin(run, "hangs", ExecutionStatus.PROVISIONING, dynamic=hangs)
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(
            zenml_pipeline, parameters={"snapshot_id": str(snapshot.id), "run_id": str(run.id)}
        )
    bind_run(run, str(flow_run.id))
    Client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.RUNNING))
    (tmp_path / "go-here").touch()
    state = run_existing_flow_run(zenml_pipeline, flow_run, dict(flow_run.parameters))
    ran = lab.read(Ran(tmp_path), run.id)
    assert (ran.status, state.name) == ("completed", "Completed"), state.message
    assert ran.states == {"held": "Completed", "hangs": "Completed"}
    assert (ran.run.steps["hangs"].id, len(ran.traces("hangs"))) == (step_run.id, 1)
