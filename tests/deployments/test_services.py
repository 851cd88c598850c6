"""The services of `deployments/`, without Docker; and the how-to, followed to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import servers
from tests.deployments.containers import Container
from tests.deployments.office import PASSWORDS, Office
from tests.integration.lab import eventually

pytestmark = pytest.mark.slow  # two minutes of servers; `make test-all` runs them


def test_the_servers_are_healthy(office: Office, prefect_services: dict[str, Container]) -> None:
    """And Prefect's API isn't open to everybody."""
    import httpx

    assert all(container.alive() for container in prefect_services.values())
    assert httpx.post(office.prefect_url + "/flow_runs/count", json={}, timeout=30).status_code == 401
    assert office.prefect("/flow_runs/count", "POST") == 0


def test_watched_cancelled_and_run_again(office: Office, worker: Container) -> None:
    """The commands of the how-to, from a snapshot on."""
    office.follow("snapshot")
    office.hold()
    first = office.follow("run")["flow run id"]
    office.until_begun()
    office.follow("cancel")
    assert office.until_ended(first) == ("stopped", "Cancelled")
    assert eventually(office.living, lambda left: not left, 10) == []
    office.release()
    second = office.follow("again")["flow run id"]
    assert second != first
    assert office.until_ended(second) == ("completed", "Completed")

    # Task runs get from the API to the database as events, through Redis and the background services.
    def task_runs() -> dict[str, str]:
        found = office.prefect("/task_runs/filter", "POST", flow_runs={"id": {"any_": [second]}})
        return {task_run["name"]: task_run["state"]["name"] for task_run in found}

    expected = {"ask": "Cached", "answer": "Completed"}
    assert eventually(task_runs, lambda found: found == expected, 30) == expected
    assert worker.alive()


def test_the_form_explains_its_parameters(office: Office, worker: Container) -> None:
    deployment = office.prefect("/deployments/name/modal-prefect/modal-prefect")
    form = deployment["parameter_openapi_schema"]
    assert form["required"] == ["snapshot_id"]
    assert set(form["properties"]) == {"snapshot_id", "run_id"}
    for parameter in form["properties"].values():
        assert len(parameter["description"]) > 40
        kinds = parameter.get("anyOf", [parameter])
        assert {"type": "string", "format": "uuid"}.items() <= kinds[0].items()
    assert "zenml pipeline snapshot list" in form["properties"]["snapshot_id"]["description"]
    assert "empty" in form["properties"]["run_id"]["description"]
    assert deployment["description"]
    assert deployment["concurrency_options"] is None


def test_the_dashboard_stops_a_run(office: Office, worker: Container) -> None:
    """ZenML's server, with the package in its image, loads our orchestrator and asks Prefect."""
    if "snapshot id" not in office.known:
        office.follow("snapshot")
    office.hold()
    flow_run = office.follow("run")["flow run id"]
    office.until_begun()
    run = office.zenml_run(flow_run)["id"]
    office.zenml(f"/runs/{run}/refresh", "POST", include_steps="true")
    assert office.zenml_run(flow_run)["body"]["status"] == "running"
    office.zenml(f"/runs/{run}/stop", "POST", graceful="false")
    assert office.until_ended(flow_run) == ("stopped", "Cancelled")


def test_the_worker_knows_no_password_of_the_servers(worker: Container) -> None:
    values = " ".join(worker.variables.values())
    for name, password in PASSWORDS.items():
        assert (password in values) is (name == "PREFECT_AUTH_STRING")


def test_the_limit_of_a_deployment(office: Office, worker: Container, tmp_path: Path) -> None:
    """What `prefect.yaml` has as a comment is what `prefect deploy` reads."""
    lines = (servers.ROOT / "prefect.yaml").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == "# concurrency_limit:")
    lines[start : start + 3] = [line.replace("# ", "", 1) for line in lines[start : start + 3]]
    (tmp_path / "prefect.yaml").write_text("\n".join(lines))
    office.run(["prefect", "--no-prompt", "deploy", "--all"], tmp_path)
    deployment = office.prefect("/deployments/name/modal-prefect/modal-prefect")
    assert deployment["global_concurrency_limit"]["limit"] == 4
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
