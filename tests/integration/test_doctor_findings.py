"""What `modal-prefect doctor` finds in a registry and in Prefect's deployments, each with a fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
from typing import Any
from uuid import uuid4

import yaml

from bridge.doctor import prefect_side, registry
from bridge.doctor.finding import Finding, Grade
from bridge.doctor.patient import Patient
from tests import servers
from tests.integration.lab import Lab, eventually
from tests.integration.refusals import names_all
from tests.integration.test_doctor import quoted, typed
from tests.integration.workers import make_pool
from tests.serving import serving_at
from tests.unit.test_doctor import a_registry


@contextmanager
def deployment(pool: str | None, **fields: Any) -> Iterator[str]:
    """A deployment of our flow, of the release that is installed, unless ``fields`` say otherwise."""
    from importlib.metadata import version

    from prefect.client.orchestration import get_client

    from bridge import names
    from bridge.flow import zenml_pipeline

    name = f"one-{uuid4().hex[:6]}"
    given = {
        "version": version(names.DISTRIBUTION),
        "parameter_openapi_schema": zenml_pipeline.parameters.model_dump_for_openapi(),
        "entrypoint": names.FLOW_ENTRYPOINT,
        "tags": ["zenml"],
        **fields,
    }
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name(f"flow-{name}")
        made = client.create_deployment(flow, name, work_pool_name=pool, pull_steps=[], **given)
        try:
            yield name
        finally:
            client.delete_deployment(made)


def on(lab: Lab, name: str) -> list[Finding]:
    """What is found of a deployment."""
    patient = Patient(lab.stack("process", prefect_api_url=f"{lab.prefect.url}/api"))
    return [one for one in prefect_side.deployments(patient) if name in one.what]


def deployed_by_hand() -> dict[str, Any]:
    """The deployments of `prefect.yaml`, by name."""
    return {one["name"]: one for one in yaml.safe_load((servers.ROOT / "prefect.yaml").read_text())["deployments"]}


class TestWorkPool:
    def test_its_own_queue_is_paused(self, lab: Lab) -> None:
        from prefect.client.orchestration import get_client

        make_pool(pool := f"pool-{uuid4().hex[:6]}")
        with get_client(sync_client=True) as client:
            client.update_work_queue(client.read_work_pool(pool).default_queue_id, is_paused=True)
        (problem,) = prefect_side.work_pool(Patient(lab.stack("process", work_pool=pool)))
        assert problem.grade is Grade.PROBLEM
        names_all(problem.what, "work_queue='default'", "the queue is paused")


class TestDeployments:
    def test_its_flow_has_other_parameters_now(self, lab: Lab) -> None:
        make_pool(pool := f"pool-{uuid4().hex[:6]}")
        with deployment(pool) as name:
            assert on(lab, name) == []
        with deployment(pool, parameter_openapi_schema={"properties": {"snapshot": {}}}) as name:
            (note,) = on(lab, name)
        assert note.grade is Grade.NOTE
        names_all(note.what, "the flow's parameters have changed")
        names_all(note.fix, "Run the pipeline once")

    def test_the_sweep_s(self, lab: Lab) -> None:
        """As `prefect.yaml` makes it, with the tag that is there."""
        from bridge import names
        from bridge.sweep_flow import sweep_stacks

        make_pool(pool := f"pool-{uuid4().hex[:6]}")
        deployed = {"entrypoint": names.SWEEP_ENTRYPOINT, "tags": deployed_by_hand()[names.SWEEP]["tags"]}
        with deployment(pool, **deployed) as name:
            (note,) = on(lab, name)
        assert note.grade is Grade.NOTE
        names_all(note.what, "the flow's parameters have changed")
        schema = sweep_stacks.parameters.model_dump_for_openapi()
        with deployment(pool, **deployed, parameter_openapi_schema=schema) as name:
            assert on(lab, name) == []
        with deployment(None, **deployed, parameter_openapi_schema=schema) as name:
            (problem,) = on(lab, name)
        assert problem.grade is Grade.PROBLEM
        names_all(problem.what, "has no work pool")

    def test_it_is_paused_with_its_schedules(self, lab: Lab) -> None:
        """As by the switch on its page, or an automation."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import DeploymentScheduleCreate
        from prefect.client.schemas.schedules import CronSchedule

        make_pool(pool := f"pool-{uuid4().hex[:6]}")
        daily = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)
        with deployment(pool) as name, get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(f"flow-{name}/{name}")
            client.pause_deployment(found.id)
            assert on(lab, name) == [], "it has no schedule that would run"
            client.create_deployment_schedules(found.id, [daily])
            (note,) = on(lab, name)
            client.resume_deployment(found.id)
            assert on(lab, name) == []
        assert note.grade is Grade.NOTE
        names_all(note.what, f"deployment `flow-{name}/{name}` is paused", "none of its schedules")
        names_all(note.fix, "Pause or resume all schedules")

    def test_its_work_pool_was_deleted(self, lab: Lab) -> None:
        """Running the pipeline with a pool that is there, as the fix says, gives it that one."""
        from prefect.client.orchestration import get_client

        from bridge.submitting.deployments import ensure_deployment

        make_pool(pool := f"pool-{uuid4().hex[:6]}")
        pipeline, component = f"pipeline-{uuid4().hex[:6]}", f"component-{uuid4().hex[:6]}"
        with get_client(sync_client=True) as client:
            made = ensure_deployment(client, pipeline, component, pool)
            try:
                assert on(lab, component) == []
                client.delete_work_pool(pool)
                (problem,) = on(lab, component)
                assert problem.grade is Grade.PROBLEM
                names_all(problem.what, f"deployment `{pipeline}/{component}` has no work pool", "was deleted")
                names_all(problem.fix, "Run the pipeline once")
                make_pool(other := f"pool-{uuid4().hex[:6]}")
                assert ensure_deployment(client, pipeline, component, other) == made
                assert on(lab, component) == []
            finally:
                client.delete_deployment(made)

    def test_one_that_somebody_serves_needs_no_work_pool(self, lab: Lab) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.objects import DeploymentStatus

        with deployment(None) as name, get_client(sync_client=True) as client:
            (problem,) = on(lab, name)
            assert problem.grade is Grade.PROBLEM
            found = client.read_deployment_by_name(f"flow-{name}/{name}")
            # As `serve` does: it asks for this deployment's runs.
            client.request("POST", "/deployments/get_scheduled_flow_runs", json={"deployment_ids": [str(found.id)]})
            ready = eventually(
                lambda: client.read_deployment(found.id).status, lambda status: status == DeploymentStatus.READY
            )
            assert ready == DeploymentStatus.READY
            assert on(lab, name) == []


class TestTheRegistry:
    def stack(self, lab: Lab, uri: str, secret: str | None) -> str:
        """A stack on Modal with a registry that is asked with this secret's credentials; both have the name."""
        from zenml.client import Client
        from zenml.enums import StackComponentType as Kind

        name = f"private-{uuid4().hex[:6]}"
        given = {"authentication_secret": secret} if secret else {}
        Client().create_stack_component(name, "default", Kind.CONTAINER_REGISTRY, {"uri": uri, **given})
        return self.stack_with(lab, name, name)

    def stack_with(self, lab: Lab, registry: str, name: str) -> str:
        from zenml.client import Client
        from zenml.enums import StackComponentType as Kind

        stack = Client().get_stack(lab.stack("modal"))
        parts = {kind: components[0].id for kind, components in stack.components.items()}
        Client().create_stack(name, components={**parts, Kind.CONTAINER_REGISTRY: registry})
        return name

    def found(self, stack: str) -> Finding:
        (found,) = registry.registry(Patient(stack))
        assert found.fix or not found.grade.is_bad
        return found

    def test_it_refuses_the_stack_s_credentials(self, lab: Lab) -> None:
        """The fix, done with good ones, makes the finding go."""
        from zenml.client import Client

        wrong, right = f"wrong-{uuid4().hex[:6]}", f"right-{uuid4().hex[:6]}"
        Client().create_secret(wrong, {"username": "ada", "password": "wrong"})
        Client().create_secret(right, {"username": "ada", "password": "secret"})
        with a_registry("basic") as uri:
            stack = self.stack(lab, uri, wrong)
            problem = self.found(stack)
            assert problem.grade is Grade.PROBLEM
            names_all(problem.what, uri, "refuses the stack's credentials (401)")
            typed(quoted(problem.fix, "zenml container-registry update", secret=right))
            # In another stack: a process keeps one that it has loaded.
            found = self.found(self.stack_with(lab, stack, f"mended-{uuid4().hex[:6]}"))
            assert found == Finding("registry", Grade.OK, f"{uri} takes the stack's credentials")

    def test_its_credentials_can_t_be_read(self, lab: Lab) -> None:
        with a_registry("basic") as uri:
            stack = self.stack(lab, uri, secret := f"gone-{uuid4().hex[:6]}")
            problem = self.found(stack)
            assert problem.grade is Grade.PROBLEM
            names_all(problem.what, f"the credentials of `{stack}` can't be read", secret)
            typed(quoted(problem.fix, "zenml secret create", secret=secret, user="ada", password="secret"))
            assert self.found(stack).grade is Grade.OK

    def test_who_has_none(self, lab: Lab) -> None:
        with a_registry("bearer") as uri:
            problem = self.found(self.stack(lab, uri, None))
        assert problem.grade is Grade.PROBLEM
        names_all(problem.what, "refuses nobody's credentials, the stack having none (401)")
        names_all(problem.fix, "zenml container-registry connect")

    def test_it_is_no_registry(self, lab: Lab) -> None:
        with serving_at(SimpleHTTPRequestHandler) as address:
            problem = self.found(self.stack(lab, f"{address}/team", None))
        assert problem.grade is Grade.UNKNOWN
        names_all(problem.what, "answers 404: is it a container registry?")
        names_all(problem.fix, "Check the uri of the container registry")
