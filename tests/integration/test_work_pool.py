"""Submitting through a work pool: the deployment, the flow run, the worker, and what is said when nobody works."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.filters import FlowRunFilter

from tests import servers
from tests.integration.conftest import another_client
from tests.integration.forwarder import Forwarder
from tests.integration.lab import Lab, Ran, asked
from tests.integration.workers import Worker, make_pool

PIPELINE_MODE = {"execution_mode": "pipeline"}


@pytest.fixture
def idle_pool(lab: Lab) -> str:
    """A pool without a worker."""
    name = f"idle-{uuid4().hex[:6]}"
    make_pool(name)
    return name


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def deployment(pipeline: str, component: str) -> Any:
    with client() as api:
        return api.read_deployment_by_name(f"{pipeline}/{component}")


def component_of(stack: str) -> str:
    return stack  # the lab gives both one name


@pytest.mark.parametrize("where", ["process", "modal"])
@pytest.mark.slow  # test_deploy.py and test_status.py have runs through workers
def test_a_run_through_a_worker(lab: Lab, pool: str, where: str) -> None:
    import shapes

    stack = lab.stack(where, work_pool=pool)
    settings = {**PIPELINE_MODE, "job_variables": {"env": {"FROM_JOB": "yes"}}}
    ran = lab.run(shapes.diamond, stack, settings=settings)
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.flow_run.name == ran.run.name
    assert {"zenml", f"zenml_run_id:{ran.run.id}", "zenml_pipeline:diamond"} <= set(ran.flow_run.tags)
    assert ran.flow_run.idempotency_key == str(ran.run.id)
    assert ran.flow_run.parameters == {"snapshot_id": str(ran.run.snapshot.id), "run_id": str(ran.run.id)}
    assert ran.flow_run.job_variables["env"]["FROM_JOB"] == "yes"
    assert asked(ran.run) == ("completed", dict.fromkeys(["one", "left", "right", "bottom"], "completed"))
    assert ran.run.run_metadata["orchestrator_url"].endswith(str(ran.flow_run.id))
    found = deployment("diamond", component_of(stack))
    assert ran.flow_run.deployment_id == found.id
    assert (found.entrypoint, found.path, found.pull_steps) == ("bridge.flow.zenml_pipeline", None, [])
    assert found.work_pool_name == pool
    assert found.job_variables == {}
    assert set(found.parameter_openapi_schema["properties"]) == {"snapshot_id", "run_id"}


@pytest.mark.slow
def test_a_failing_run_through_a_worker(lab: Lab, pool: str) -> None:
    import shapes

    ran = lab.run(shapes.failing, lab.stack("process", work_pool=pool), settings=PIPELINE_MODE)
    assert "as told" in str(ran.error)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")


@pytest.mark.slow  # so does one that is behind, below
def test_submitting_again_leaves_the_deployment_alone(lab: Lab, idle_pool: str) -> None:
    """Also what others have put on it: schedules, tags, job variables."""
    import shapes
    from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
    from prefect.client.schemas.schedules import CronSchedule

    stack = lab.stack("process", work_pool=idle_pool, synchronous=False)
    first = lab.run(shapes.diamond, stack, begun=False)
    assert (first.error, first.status) == (None, "provisioning")
    before = deployment("diamond", component_of(stack))
    with client() as api:
        daily = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 0 * * *"), slug="mine")
        api.create_deployment_schedules(before.id, [daily])
        changes = DeploymentUpdate(tags=[*before.tags, "mine"], job_variables={"env": {"MINE": "1"}})
        api.update_deployment(before.id, changes)
    touched = deployment("diamond", component_of(stack))
    second = lab.run(shapes.diamond, stack, settings={"work_queue": "fast"}, begun=False)
    after = deployment("diamond", component_of(stack))
    assert after == touched
    assert [schedule.slug for schedule in after.schedules] == ["mine"]
    assert second.flow_run.deployment_id == first.flow_run.deployment_id
    assert second.flow_run.id != first.flow_run.id
    assert second.flow_run.work_queue_name == "fast"


@pytest.mark.slow  # one that waits says the same, below
def test_submitting_without_waiting_says_that_nobody_works(
    lab: Lab, idle_pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "bridge.submitting.submission"):
        submit_only(lab, idle_pool)
    assert f"modal-prefect worker --pool {idle_pool}" in caplog.text


def test_a_deployment_that_is_behind_is_brought_up_to_date(lab: Lab, idle_pool: str) -> None:
    import shapes
    from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
    from prefect.client.schemas.schedules import CronSchedule

    stack = lab.stack("process", work_pool=idle_pool, synchronous=False)
    lab.run(shapes.chain, stack, length=1, begun=False)
    before = deployment("chain", component_of(stack))
    with client() as api:
        daily = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 0 * * *"), slug="mine")
        api.create_deployment_schedules(before.id, [daily])
        behind = DeploymentUpdate(version="0.0.1", entrypoint="old.module", tags=["mine"])
        api.update_deployment(before.id, behind)
    lab.run(shapes.chain, stack, length=1, begun=False)
    after = deployment("chain", component_of(stack))
    assert (after.id, after.version, after.entrypoint) == (before.id, before.version, before.entrypoint)
    assert set(after.tags) == {"mine", *before.tags}
    assert [schedule.slug for schedule in after.schedules] == ["mine"]


def test_nobody_works_and_the_run_is_cancelled(lab: Lab, idle_pool: str, caplog: pytest.LogCaptureFixture) -> None:
    """The waiting process says so at once and again, and ends the ZenML run, which no flow ever saw."""
    from zenml.client import Client

    from bridge.errors import RunStopped
    from bridge.submitting.waiting import REMIND_SECONDS, Waiting
    from bridge.watching.followed import FollowedSteps

    flow_run, run = submit_only(lab, idle_pool)
    clock = Clock()
    said: list[str] = []
    caplog.clear()

    def sleep(seconds: float) -> None:
        if clock.time <= 2.5 * REMIND_SECONDS:
            clock.time += seconds
        else:  # the clock stands still now: how long the server takes isn't this test's business
            cancel(flow_run)

    steps = FollowedSteps(UUID(flow_run), "diamond")
    with caplog.at_level(logging.INFO), pytest.raises(RunStopped):
        Waiting(run, UUID(flow_run), idle_pool, steps, said.append, sleep, lambda: clock.time).until_done()
    warnings = [record.message for record in caplog.records if record.name == "bridge.submitting.waiting"]
    assert f"GET {lab.prefect.url}/api/flow_runs/{flow_run}" not in caplog.text
    assert len(warnings) == 3
    assert f"modal-prefect worker --pool {idle_pool}" in warnings[0]
    assert Client().get_pipeline_run(run.id).status.value == "stopped"


class Clock:
    time = 0.0


def submit_only(lab: Lab, pool: str) -> tuple[str, Any]:
    """Submit without waiting; return the flow run's id and the ZenML run."""
    import shapes

    ran = lab.run(shapes.diamond, lab.stack("process", work_pool=pool, synchronous=False), begun=False)
    assert ran.error is None
    return ran.run.orchestrator_run_id, ran.run


def cancel(flow_run: str) -> None:
    """As the UI does."""
    from prefect.states import Cancelling

    with client() as api:
        api.set_flow_run_state(flow_run, Cancelling())


def test_interrupting_the_wait_leaves_the_run_alone(lab: Lab, idle_pool: str) -> None:
    from zenml.client import Client

    from bridge.submitting.waiting import Waiting
    from bridge.watching.followed import FollowedSteps

    flow_run, run = submit_only(lab, idle_pool)
    said: list[str] = []

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    steps = FollowedSteps(UUID(flow_run), "diamond")
    with pytest.raises(KeyboardInterrupt):
        Waiting(run, UUID(flow_run), idle_pool, steps, said.append, interrupted).until_done()
    assert f"zenml pipeline runs stop {run.id}" in said[-1]
    assert f"prefect flow-run cancel {flow_run}" in said[-1]
    assert Client().get_pipeline_run(run.id).status.value == "provisioning"
    with client() as api:
        assert api.read_flow_run(UUID(flow_run)).state.is_scheduled()


def refused(lab: Lab, **configuration: Any) -> str:
    """The message of a submission that is refused, after which nothing has begun."""
    import shapes
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    settings = configuration.pop("settings", None)
    ran: Ran = lab.run(shapes.diamond, lab.stack("process", **configuration), settings=settings, begun=False)
    with client() as api:
        ours = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"zenml_run_id:{ran.run.id}"]))
        assert api.read_flow_runs(flow_run_filter=ours) == []
    assert ran.run.orchestrator_run_id is None
    assert ran.status == "failed"
    return str(ran.error)


def test_a_pool_that_does_not_exist(lab: Lab) -> None:
    message = refused(lab, work_pool="nowhere")
    assert "work_pool='nowhere'" in message
    assert "prefect work-pool create nowhere" in message


def test_a_paused_pool_and_a_paused_queue(lab: Lab, idle_pool: str) -> None:
    from prefect.client.schemas.actions import WorkPoolUpdate

    with client() as api:
        queue = api.create_work_queue("slow", work_pool_name=idle_pool)
        api.update_work_queue(queue.id, is_paused=True)
    message = refused(lab, work_pool=idle_pool, settings={"work_queue": "slow"})
    assert "work_queue='slow'" in message
    assert f"prefect work-queue resume slow --pool {idle_pool}" in message
    with client() as api:
        api.update_work_pool(idle_pool, WorkPoolUpdate(is_paused=True))
    message = refused(lab, work_pool=idle_pool)
    assert f"work_pool='{idle_pool}'" in message
    assert f"prefect work-pool resume {idle_pool}" in message


def test_a_paused_queue_that_nobody_named(lab: Lab) -> None:
    """The pool's own: there the run would wait for ever, with a worker online."""
    make_pool(pool := f"pool-{uuid4().hex[:6]}")
    with client() as api:
        api.update_work_queue(api.read_work_pool(pool).default_queue_id, is_paused=True)
    message = refused(lab, work_pool=pool)
    assert "work_queue='default': the queue is paused" in message
    assert f"prefect work-queue resume default --pool {pool}" in message


@pytest.mark.slow  # test_bad_input.py has such URLs, and test_doctor.py
@pytest.mark.parametrize(("path", "hint"), [("/api", "can't be used"), ("", "the URL ends with /api")])
def test_a_wrong_url(lab: Lab, idle_pool: str, path: str, hint: str) -> None:
    url = "http://127.0.0.1:9/api" if path else lab.prefect.url
    message = refused(lab, work_pool=idle_pool, prefect_api_url=url)
    assert url in message
    assert hint in message
    assert "prefect config view" in message


@pytest.mark.slow
def test_a_worker_whose_environment_cannot_run_the_flow(lab: Lab, tmp_path: Path) -> None:
    """Its ZenML isn't configured for this server: the snapshot is unknown there. Both sides say so."""
    import shapes

    name = f"stranger-{uuid4().hex[:6]}"
    make_pool(name)
    elsewhere = dict.fromkeys(variable for variable in os.environ if variable.startswith("ZENML_STORE"))
    worker = Worker(name, tmp_path, {**elsewhere, "ZENML_CONFIG_PATH": str(tmp_path / "zenml")}).start()
    try:
        ran = lab.run(shapes.diamond, lab.stack("process", work_pool=name), begun=False)
    finally:
        worker.stop()
    assert "this ZenML server has no such snapshot" in str(ran.error)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")


def test_a_flow_that_cannot_begin_ends_its_zenml_run(lab: Lab, idle_pool: str) -> None:
    """Nobody waits for it, so nobody else would."""
    import shapes
    from zenml.client import Client

    from bridge.flow import zenml_pipeline
    from bridge.upstream_prefect import run_existing_flow_run

    stack = lab.stack("process", work_pool=idle_pool, synchronous=False, tags={"test": "deleted"})
    ran = lab.run(shapes.diamond, stack, begun=False)
    lab.activate("default")
    Client().delete_stack(stack)
    state = run_existing_flow_run(zenml_pipeline, ran.flow_run, ran.flow_run.parameters)  # as a worker does
    assert state.is_failed()
    assert "its stack was deleted" in str(state.message)
    assert Client().get_pipeline_run(ran.run.id).status.value == "failed"


def test_a_pool_that_is_deleted_meanwhile(lab: Lab, idle_pool: str) -> None:
    from bridge.submitting.work_pool import nobody_works

    with client() as api:
        assert f"--pool {idle_pool}" in str(nobody_works(api, idle_pool))
        api.delete_work_pool(idle_pool)
        assert f"{idle_pool} was deleted" in str(nobody_works(api, idle_pool))


def test_a_password_and_a_header_in_front_of_prefect(lab: Lab, idle_pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import shapes

    wanted = {"Authorization": "Basic YWRtaW46cGFzcw==", "X-Team": "blue"}
    with Forwarder(lab.prefect.url, required=wanted) as proxy:
        configuration = {"work_pool": idle_pool, "prefect_api_url": f"{proxy.url}/api", "synchronous": False}
        message = refused(lab, **configuration)
        assert "401" in message
        assert "PREFECT_API_AUTH_STRING" in message
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:pass")
        monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Team": "blue"}')
        with prefect_reads_its_environment_again():
            ran = lab.run(shapes.diamond, lab.stack("process", **configuration), begun=False)
    assert ran.error is None
    assert ran.status == "provisioning"


@contextmanager
def prefect_reads_its_environment_again() -> Iterator[None]:
    """Prefect reads it when it is imported."""
    from prefect.context import SettingsContext
    from prefect.settings import Settings, get_current_settings

    profile = SettingsContext.get()
    assert profile is not None
    assert get_current_settings().api.auth_string is None
    with SettingsContext(profile=profile.profile, settings=Settings()):
        yield


@contextmanager
def zenml_behind(proxy: Forwarder, lab: Lab, folder: Path) -> Iterator[None]:
    """This process is a client of the lab's ZenML through ``proxy`` while the block runs."""
    from zenml.client import Client

    # Where there are several projects a new client has none of them.
    project = {"ZENML_ACTIVE_PROJECT_ID": str(Client().active_project.id)}
    with another_client(servers.zenml_client_environment(folder, replace(lab.zenml, url=proxy.url)) | project):
        yield


def test_interrupted_while_it_is_submitted(lab: Lab, idle_pool: str, tmp_path: Path) -> None:
    """Between the flow run's making and ZenML's hearing of it: no worker is to carry it out after all."""
    import shapes

    made: list[Any] = []

    def interrupt(method: str, path: str) -> None:
        if method != "PUT" or made:
            return
        run = path.rpartition("/")[2].partition("?")[0]
        with client() as api:
            made.extend(api.read_flow_runs(flow_run_filter=FlowRunFilter(tags={"all_": [f"zenml_run_id:{run}"]})))
        if made:
            os.kill(os.getpid(), signal.SIGINT)

    stack = lab.stack("process", work_pool=idle_pool, synchronous=False)
    with (
        Forwarder(lab.zenml.url, before=interrupt) as proxy,
        zenml_behind(proxy, lab, tmp_path),
        pytest.raises(KeyboardInterrupt),
    ):
        lab.run(shapes.chain, stack, settings={"execution_mode": "pipeline"}, begun=False, length=1)
    with client() as api:
        assert api.read_flow_run(made[0].id).state.is_cancelled()
