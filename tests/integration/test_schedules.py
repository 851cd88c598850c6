"""ZenML schedules in Prefect: one fires, runs, is paused, changed, deleted; a submission that fails leaves none."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.integration.forwarder import Forwarder
from tests.integration.lab import Lab, Ran, eventually
from tests.integration.workers import make_pool
from tests.servers import Server


@pytest.fixture(scope="module")
def idle_pool(lab: Lab) -> str:
    name = f"idle-{uuid4().hex[:6]}"
    make_pool(name)
    return name


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def schedule_it(
    lab: Lab,
    pool: str,
    into: Path | None = None,
    settings: dict[str, Any] | None = None,
    steps: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
    **schedule: Any,
) -> tuple[Any, BaseException | None]:
    """Run a pipeline with a schedule; return ZenML's schedule, if it kept one."""
    import shapes
    from zenml.client import Client
    from zenml.config.schedule import Schedule

    name = f"schedule-{uuid4().hex[:8]}"
    ran = lab.run(
        shapes.chain,
        lab.stack("process", work_pool=pool, **({"tags": tags} if tags else {})),
        settings={"execution_mode": "pipeline", **(settings or {})},
        options={"schedule": Schedule(name=name, **schedule), "steps": steps or {}},
        into=into,
        begun=False,
        length=1,
    )
    found = Client().list_schedules(name=name, hydrate=True).items
    return (found[0] if found else None), ran.error


def in_prefect(zenml_schedule: Any) -> Any:
    """The Prefect schedule with the deployment it belongs to, None if there is none."""
    deployment_id = UUID(zenml_schedule.run_metadata["prefect_deployment_id"])
    with client() as api:
        schedules = api.read_deployment_schedules(deployment_id)
    return next((schedule for schedule in schedules if schedule.slug == str(zenml_schedule.id)), None)


def planned(zenml_schedule: Any) -> list[Any]:
    """The flow runs that Prefect has planned for it."""
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter, FlowRunFilterState

    deployment_id = UUID(zenml_schedule.run_metadata["prefect_deployment_id"])
    with client() as api:
        found = api.read_flow_runs(
            deployment_filter=DeploymentFilter(id={"any_": [deployment_id]}),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type={"any_": ["SCHEDULED"]})),
        )
    return [run for run in found if run.auto_scheduled]


def test_a_schedule_fires_and_each_run_is_a_zenml_run_of_its_own(lab: Lab, pool: str, tmp_path: Path) -> None:
    from zenml.client import Client

    start = datetime.now(timezone.utc).replace(microsecond=0)
    every = timedelta(seconds=15)
    settings = {"work_queue": "nightly", "job_variables": {"env": {"FROM_JOB": "yes"}}}
    # No end: however long the submission takes on a busy machine, Prefect plans the times that are left.
    schedule, error = schedule_it(lab, pool, tmp_path, settings, start_time=start, interval_second=every)
    assert (error, schedule is not None) == (None, True)
    # By which Prefect's server forgets the schedule's parameters.
    for on in (False, True):
        switch_in_the_ui(in_prefect(schedule), on=on)

    def fired() -> list[Any]:
        return list(Client().list_pipeline_runs(schedule_id=schedule.id, hydrate=True, sort_by="asc:created").items)

    begun = eventually(fired, lambda found: len(found) >= 2, 180)
    # Two are enough: on a busy machine more would pile up.
    switch_in_the_ui(in_prefect(schedule), on=False)
    assert len(begun) >= 2
    runs = eventually(fired, lambda found: all(run.status.is_finished for run in found), 180)
    Client().delete_schedule(schedule.id)
    assert {run.status.value for run in runs} == {"completed"}
    assert len({run.orchestrator_run_id for run in runs}) == len(runs)
    with client() as api:
        first, second = (api.read_flow_run(UUID(run.orchestrator_run_id)) for run in runs[:2])
    planned_at = [round(run.expected_start_time.timestamp() - start.timestamp()) for run in (first, second)]
    assert 0 <= planned_at[0] < planned_at[1]
    assert {time % every.seconds for time in planned_at} == {0}
    assert [first.name, second.name] == [run.name for run in runs[:2]]
    assert first.parameters == {"snapshot_id": str(runs[0].snapshot.id)}
    assert f"zenml_run_id:{runs[0].id}" in first.tags
    assert (first.work_queue_name, second.work_queue_name) == ("nightly", "nightly")
    # The process in which the worker runs the flow has it, and hands it on to its sandboxes.
    assert {trace["job"] for trace in Ran(tmp_path).traces("one")} == {"yes"}
    assert in_prefect(schedule) is None
    assert planned(schedule) == []


def test_a_schedule_is_paused_changed_and_deleted(lab: Lab, idle_pool: str) -> None:
    from zenml.client import Client

    schedule, error = schedule_it(lab, idle_pool, cron_expression="CRON_TZ=Europe/Berlin 0 9 * * *")
    assert error is None
    made = in_prefect(schedule)
    assert (made.schedule.cron, made.schedule.timezone, made.active) == ("0 9 * * *", "Europe/Berlin", True)
    assert set(made.parameters) == {"snapshot_id"}
    assert eventually(lambda: planned(schedule), bool, 60), "Prefect's scheduler hasn't seen it"

    Client().update_schedule(schedule.id, active=False)
    assert not in_prefect(schedule).active
    Client().update_schedule(schedule.id, active=True, cron_expression="30 10 * * 1")
    changed = in_prefect(schedule)
    assert (changed.schedule.cron, changed.schedule.timezone, changed.active) == ("30 10 * * 1", "UTC", True)
    assert changed.parameters == made.parameters
    monday = eventually(lambda: planned(schedule), lambda runs: runs and is_monday(runs), 60)
    assert is_monday(monday)

    switch_in_the_ui(changed, on=False)
    schedule_it(lab, idle_pool, cron_expression="0 7 * * *")  # the deployment is made again
    assert not in_prefect(schedule).active

    Client().delete_schedule(schedule.id)
    assert in_prefect(schedule) is None
    assert planned(schedule) == []


def switch_in_the_ui(schedule: Any, *, on: bool) -> None:
    """Make the request that the switch beside a schedule makes in Prefect's UI: of the schedule it has this alone."""
    with client() as api:
        api.update_deployment_schedule(schedule.deployment_id, schedule.id, active=on)


def is_monday(runs: list[Any]) -> bool:
    times = {(run.expected_start_time.weekday(), run.expected_start_time.strftime("%H:%M")) for run in runs}
    return times == {(0, "10:30")}


@pytest.mark.slow  # a deployment that is made again keeps one, above
def test_a_second_schedule_and_a_run_by_hand_leave_the_first(lab: Lab, idle_pool: str) -> None:
    first, _ = schedule_it(lab, idle_pool, cron_expression="0 1 * * *")
    second, _ = schedule_it(
        lab, idle_pool, cron_expression="0 2 * * *", end_time=datetime(2099, 1, 1, tzinfo=timezone.utc)
    )
    assert in_prefect(first).schedule.cron == "0 1 * * *"
    assert "UNTIL=20990101T000000" in in_prefect(second).schedule.rrule


def test_a_schedule_of_a_project_that_is_not_the_active_one(lab: Lab, idle_pool: str) -> None:
    """As on a worker, which runs the schedules of all projects."""
    from zenml.client import Client

    from bridge.submitting.scheduled import snapshot_of

    client, name = Client(), f"project-{uuid4().hex[:6]}"
    active, other = client.active_project, client.create_project(name, "")
    client.set_active_project(other.id)
    try:
        schedule, error = schedule_it(lab, idle_pool, cron_expression="0 6 * * *")
        [snapshot] = client.list_snapshots(schedule_id=schedule.id, named_only=False).items
    finally:
        client.set_active_project(active.id)
    assert error is None
    assert snapshot_of(schedule.id) == snapshot.id
    client.delete_schedule(schedule.id)
    assert snapshot_of(schedule.id) is None
    assert snapshot_of(uuid4()) is None


@pytest.mark.slow  # the schedule that fires has a queue of its own
def test_the_queue_of_a_schedule_is_not_that_of_other_runs(lab: Lab, idle_pool: str) -> None:
    import shapes

    first, _ = schedule_it(lab, idle_pool, settings={"work_queue": "nightly"}, cron_expression="0 1 * * *")
    assert queue_of_deployment(first) == "nightly"
    stack = lab.stack("process", work_pool=idle_pool)
    ran = lab.run(shapes.chain, stack, settings={"synchronous": False}, begun=False, length=1)
    assert ran.error is None
    assert (str(ran.flow_run.deployment_id), ran.flow_run.work_queue_name) == (deployment_of(first), "default")
    second, _ = schedule_it(lab, idle_pool, cron_expression="0 2 * * *")
    assert (deployment_of(second), queue_of_deployment(second)) == (deployment_of(first), "default")


def deployment_of(zenml_schedule: Any) -> str:
    return str(zenml_schedule.run_metadata["prefect_deployment_id"])


def queue_of_deployment(zenml_schedule: Any) -> str:
    with client() as api:
        return str(api.read_deployment(UUID(deployment_of(zenml_schedule))).work_queue_name)


def test_a_schedule_that_was_deleted_in_prefect(lab: Lab, idle_pool: str) -> None:
    from zenml.client import Client

    from bridge.errors import InvalidSettings

    schedule, _ = schedule_it(lab, idle_pool, cron_expression="0 3 * * *")
    found = in_prefect(schedule)
    with client() as api:
        api.delete_deployment_schedule(found.deployment_id, found.id)
    with pytest.raises(InvalidSettings, match="Prefect has no such schedule any more"):
        Client().update_schedule(schedule.id, cron_expression="0 4 * * *")
    Client().delete_schedule(schedule.id)


def test_a_schedule_that_is_in_another_prefect(
    lab: Lab, idle_pool: str, other_prefect: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """ZenML archives what is deleted, and the other Prefect goes on."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    from bridge.errors import InvalidSettings
    from bridge.submitting.scheduled import snapshot_for

    schedule, _ = schedule_it(lab, idle_pool, tags={"apart": uuid4().hex}, cron_expression="0 3 * * *")
    [flow_run, *_] = eventually(lambda: planned(schedule), bool, 60)
    given = UUID(flow_run.parameters["snapshot_id"])
    assert snapshot_for(flow_run, given) == given
    url = {"prefect_api_url": f"{other_prefect.url}/api"}
    Client().update_stack_component(schedule.orchestrator_id, StackComponentType.ORCHESTRATOR, configuration=url)
    with pytest.raises(InvalidSettings, match=f"deleted there, or .*{other_prefect.url}.* isn't the one that has it"):
        Client().update_schedule(schedule.id, active=False)
    with caplog.at_level("WARNING", "bridge.submitting.schedule_store"):
        Client().delete_schedule(schedule.id)
    assert f"{other_prefect.url}/api has no deployment {deployment_of(schedule)}" in caplog.text
    still = in_prefect(schedule)
    with pytest.raises(InvalidSettings, match=f"schedule='{schedule.name}.*': it was deleted in ZenML.*{schedule.id}"):
        snapshot_for(flow_run, given)
    with client() as api:
        api.delete_deployment_schedule(still.deployment_id, still.id)


def test_a_schedule_of_a_deployment_that_is_paused(lab: Lab, idle_pool: str, caplog: pytest.LogCaptureFixture) -> None:
    """As by the switch for all schedules in Prefect's UI: Prefect takes a new one, and plans nothing."""
    from zenml.client import Client

    schedule, _ = schedule_it(lab, idle_pool, cron_expression="0 3 * * *")
    with client() as api:
        api.pause_deployment(UUID(deployment_of(schedule)))
    with caplog.at_level("WARNING", "bridge.submitting.deployments"):
        other, error = schedule_it(lab, idle_pool, cron_expression="0 4 * * *")
    assert error is None
    assert "is paused: Prefect plans none of its schedules" in caplog.text
    assert "Pause or resume all schedules" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "bridge.submitting.deployments"):
        Client().update_schedule(schedule.id, cron_expression="0 5 * * *")
    assert "is paused: Prefect plans none of its schedules" in caplog.text
    with client() as api:
        api.resume_deployment(UUID(deployment_of(schedule)))
    caplog.clear()
    Client().update_schedule(schedule.id, cron_expression="0 6 * * *")
    assert "is paused" not in caplog.text
    for one in (schedule, other):
        Client().delete_schedule(one.id)


def test_a_run_that_has_begun_goes_on_without_its_schedule(lab: Lab, idle_pool: str) -> None:
    """Its flow crashed, and meanwhile somebody deleted the schedule."""
    from zenml.client import Client

    from bridge import names
    from bridge.errors import InvalidSettings
    from bridge.submitting.scheduled import snapshot_for, zenml_schedule

    schedule, _ = schedule_it(lab, idle_pool, cron_expression="0 3 * * *")

    def its_own() -> list[Any]:  # others may have planned some for the deployment
        return [run for run in planned(schedule) if zenml_schedule(run) == schedule.id]

    [not_begun, begun, *_] = eventually(its_own, lambda found: len(found) > 1, 60)
    given = UUID(begun.parameters["snapshot_id"])
    with client() as api:
        # As a flow does, once it has opened its run.
        api.update_flow_run(begun.id, tags=[*begun.tags, *names.flow_run_tags(str(uuid4()), "chain", "stack", None)])
        begun = api.read_flow_run(begun.id)
    Client().delete_schedule(schedule.id, soft=False)
    with pytest.raises(InvalidSettings, match="ZenML has no snapshot of the schedule"):
        snapshot_for(not_begun, given)
    assert snapshot_for(begun, given) == given


def test_late_runs_that_go_with_another_schedule_are_named(
    lab: Lab, idle_pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect deletes what waits of all schedules of the deployment."""
    from zenml.client import Client

    now = datetime.now(timezone.utc)
    often, _ = schedule_it(lab, idle_pool, start_time=now, interval_second=timedelta(seconds=2))
    daily, _ = schedule_it(lab, idle_pool, cron_expression="0 3 * * *")

    def late() -> list[Any]:
        return [run for run in planned(often) if run.expected_start_time < datetime.now(timezone.utc)]

    assert eventually(late, bool, 60)
    with caplog.at_level("WARNING", "bridge.submitting.schedule_store"):
        Client().delete_schedule(daily.id)
    assert "waiting runs of other schedules of the pipeline" in caplog.text
    caplog.clear()
    Client().delete_schedule(often.id)
    assert "of other schedules" not in caplog.text


def test_a_schedule_is_not_deleted_on_a_server_that_nobody_keeps(lab: Lab, idle_pool: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from zenml.client import Client

    from bridge.errors import PrefectUnavailable

    schedule, _ = schedule_it(lab, idle_pool, cron_expression="0 3 * * *")
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        with pytest.raises(PrefectUnavailable, match=f"`{schedule.name}` needs a Prefect server that stays"):
            Client().delete_schedule(schedule.id)
        with pytest.raises(PrefectUnavailable, match=f"`{schedule.name}` needs a Prefect server that stays"):
            Client().update_schedule(schedule.id, active=False)
    Client().delete_schedule(schedule.id)
    assert in_prefect(schedule) is None


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ({"cron_expression": "0 9 * * *", "catchup": True}, ("catchup=True", "Take catchup=True off")),
        ({"cron_expression": "0 9 * *"}, ("cron_expression='0 9 * *'", "five fields")),
    ],
)
def test_a_refused_schedule_leaves_nothing(
    lab: Lab, idle_pool: str, schedule: dict[str, Any], says: tuple[str, ...]
) -> None:
    kept, error = schedule_it(lab, idle_pool, **schedule)
    assert kept is None
    assert all(fragment in str(error) for fragment in says), error
    assert all_slugs(lab) <= zenml_ids()


def test_a_schedule_of_refused_settings_is_named(lab: Lab, idle_pool: str, caplog: pytest.LogCaptureFixture) -> None:
    """ZenML makes it before it asks anybody about settings, and keeps it."""
    from zenml.client import Client

    gpu = {"one": {"settings": {"resources": {"gpu_count": 1}}}}
    with caplog.at_level("WARNING", "bridge.orchestrator"):
        kept, error = schedule_it(lab, idle_pool, steps=gpu, cron_expression="0 9 * * *")
    assert "gpu_count of step one" in str(error)
    assert f"schedule `{kept.name}`" in caplog.text
    assert f"zenml pipeline schedule delete {kept.id}" in caplog.text
    Client().delete_schedule(kept.id)
    caplog.clear()
    assert schedule_it(lab, idle_pool, cron_expression="0 9 * * *")[1] is None
    assert "schedule delete" not in caplog.text
    assert all_slugs(lab) <= zenml_ids()


def all_slugs(lab: Lab) -> set[str]:
    with client() as api:
        return {schedule.slug for found in api.read_deployments() for schedule in found.schedules} - {None, "mine"}


def zenml_ids() -> set[str]:
    from zenml.client import Client

    return {str(schedule.id) for schedule in Client().list_schedules(size=1000).items}


def makes_a_schedule(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/schedules")


def schedule_through(lab: Lab, pool: str, proxy: Forwarder) -> tuple[list[Any], BaseException | None]:
    """Run a pipeline with a schedule, Prefect being behind ``proxy``; return ZenML's schedules of it."""
    import shapes
    from zenml.client import Client
    from zenml.config.schedule import Schedule

    name = f"through-{uuid4().hex[:8]}"
    stack = lab.stack("process", work_pool=pool, prefect_api_url=f"{proxy.url}/api")
    daily = {"schedule": Schedule(name=name, cron_expression="0 5 * * *")}
    ran = lab.run(shapes.chain, stack, options=daily, begun=False, length=1)
    return Client().list_schedules(name=name, hydrate=True).items, ran.error


def test_a_schedule_that_prefect_refuses_leaves_nothing(lab: Lab, idle_pool: str) -> None:
    before = all_slugs(lab)
    with Forwarder(lab.prefect.url, refuses=makes_a_schedule) as proxy:
        kept, error = schedule_through(lab, idle_pool, proxy)
    assert proxy.refused == 1
    assert "not today" in str(error)
    assert kept == []
    assert all_slugs(lab) == before


def test_a_schedule_whose_answer_is_lost_is_made_once(lab: Lab, idle_pool: str) -> None:
    """Prefect makes it, the connection breaks before it can say so, and the client asks again."""
    before = all_slugs(lab)
    with Forwarder(lab.prefect.url, cuts=makes_a_schedule) as proxy:
        kept, error = schedule_through(lab, idle_pool, proxy)
    assert proxy.cut
    assert error is None
    assert all_slugs(lab) - before == {str(schedule.id) for schedule in kept}
    assert len(kept) == 1
