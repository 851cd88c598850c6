"""`deployments/` against the schemas and linters of the tools that read it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.flow_run import eviction
from tests.deployments import files
from tests.deployments.files import DEPLOYMENTS, DOCKERFILES, ENVIRONMENTS

COMPOSE = DEPLOYMENTS / "compose.yaml"
TEMPLATE = DEPLOYMENTS / "kubernetes" / "job-template.json"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The services of the compose file, with made-up secrets."""
    secrets = tmp_path_factory.mktemp("secrets") / "server.secrets.env"
    names = files.environment(DEPLOYMENTS / "server.secrets.env.example")
    secrets.write_text("".join(f"{name}=made-up\n" for name in names))
    found: dict[str, dict[str, object]] = files.compose(ENVIRONMENTS[0], secrets)["services"]
    return found


def test_the_compose_file_follows_its_specification(tmp_path: Path) -> None:
    files.tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE.read_text().replace("depends_on:", "depend_on:"))
    assert "depend_on" in files.tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", broken, ok=False)


def test_the_parts_that_a_team_needs(services: dict[str, dict[str, object]]) -> None:
    assert set(services) == {
        *("postgres", "redis", "prefect-migrate", "prefect-server", "prefect-services"),
        *("mysql", "zenml-server", "worker"),
    }
    for name, service in services.items():
        for dependency, condition in dict(service.get("depends_on", {})).items():  # type: ignore[call-overload]
            needed = services[dependency]
            if condition["condition"] == "service_healthy":
                # The worker's check stands in its image, which Kubernetes doesn't read but Compose does.
                assert "healthcheck" in needed, f"{name} waits for {dependency}, which has no health check"
            else:
                assert (condition["condition"], needed["restart"]) == ("service_completed_successfully", "on-failure")


def test_no_secret_is_in_the_compose_file(services: dict[str, dict[str, object]]) -> None:
    """Each value that is secret comes from the env file; the worker gets none of the servers' secrets."""
    variable = re.compile(r"^\$\{[A-Z_]+:\?[^}]+\}$|^\"yes\"$")
    lines = [line.split("#")[0].strip() for line in COMPOSE.read_text().splitlines()]
    secret = [line for line in lines if re.match(r"[A-Z_]*(PASSWORD|SECRET|AUTH_STRING|TOKEN|KEY)[A-Z_]*:", line)]
    assert len(secret) >= 6
    for line in secret:
        assert variable.match(line.split(": ", 1)[1]), line
    credentials = re.findall(r"://\w+:(\$\{[^}]+\}|[^@\s]+)@", COMPOSE.read_text())
    assert credentials == ["${POSTGRES_PASSWORD:?in server.secrets.env}", "${MYSQL_PASSWORD:?in server.secrets.env}"]
    assert "environment" not in services["worker"]
    assert services["worker"]["env_file"] == ["environments/development.env", "worker.secrets.env"]


def test_examples_name_every_secret_and_hold_none() -> None:
    needed = set(re.findall(r"\$\{([A-Z_]+):\?in server\.secrets\.env\}", COMPOSE.read_text()))
    server = files.environment(DEPLOYMENTS / "server.secrets.env.example")
    worker = files.environment(DEPLOYMENTS / "worker.secrets.env.example")
    assert set(server) == needed
    assert set(worker) == {
        *("ZENML_STORE_API_KEY", "PREFECT_API_AUTH_STRING", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"),
    }
    assert {*server.values(), *worker.values()} == {""}


def test_only_published_to_this_machine(services: dict[str, dict[str, object]]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"prefect-server": ["127.0.0.1:4200:4200"], "zenml-server": ["127.0.0.1:8080:8080"]}


def test_environments_say_the_same_things() -> None:
    assert [path.stem for path in ENVIRONMENTS] == ["development", "production", "staging"]
    environments = [files.environment(path) for path in ENVIRONMENTS]
    assert len({tuple(environment) for environment in environments}) == 1
    assert [environment["ENVIRONMENT"] for environment in environments] == [path.stem for path in ENVIRONMENTS]
    for path in ENVIRONMENTS:
        assert not re.search(r"(?i)password|secret=|token|_key", "\n".join(files.environment(path)))
        blocks = [block for block in path.read_text().split("\n\n") if block.strip()]
        assert all(block.startswith("#") for block in blocks), "each group of variables says what it is for"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_the_dockerfiles_pass_hadolint(path: Path, tmp_path: Path) -> None:
    files.tool("hadolint", "--failure-threshold", "info", path)
    broken = tmp_path / path.name
    broken.write_text(path.read_text().replace("--no-cache-dir", ""))
    assert "DL3042" in files.tool("hadolint", "--failure-threshold", "info", broken, ok=False)


def test_the_images() -> None:
    """The worker isn't root; ZenML's server keeps the base image's user and command, of the version we support."""
    worker, server = (files.dockerfile(DEPLOYMENTS / f"{name}.Dockerfile") for name in ("worker", "zenml-server"))
    assert files.instruction(worker, "USER") == "1000"
    assert files.instruction(server, "FROM") == "zenmldocker/zenml-server:${ZENML_VERSION}"
    assert {name for name, _ in server["final"]} == {"FROM", "ARG", "RUN"}
    assert server["arguments"]["ZENML_VERSION"] == "0.98.0"


@pytest.fixture(scope="module")
def rendered() -> dict[str, Any]:
    return files.job(image="ours:1", env={"LEVEL": "high"}, secret="team-a")


def test_the_job_template_is_one_of_prefect_kubernetes(rendered: dict[str, Any]) -> None:
    """Every key is one that prefect-kubernetes reads, and every variable is used."""
    template = json.loads(TEMPLATE.read_text())
    assert set(template["job_configuration"]) <= set(rendered["configuration"])
    ours = {"secret", "config_map"}
    properties = template["variables"]["properties"]
    assert set(properties) - ours <= set(rendered["variables"])
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(properties)
    assert all(len(variable["description"]) > 5 for variable in properties.values())


def test_the_job(rendered: dict[str, Any], tmp_path: Path) -> None:
    """What is made of it is a Kubernetes job that runs a flow once: an evicted pod is a flow that died."""
    manifest = rendered["manifest"]
    path = tmp_path / "job.yaml"
    # As the cluster does with `generateName`.
    path.write_text(yaml.safe_dump({**manifest, "metadata": {**manifest["metadata"], "name": "nightly-1"}}))
    files.tool("kubernetes-validate", "--strict", path)
    pod = manifest["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (manifest["spec"]["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert "podFailurePolicy" not in manifest["spec"]
    assert pod["terminationGracePeriodSeconds"] > 0
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["image"] == "ours:1"
    assert container["envFrom"] == [
        {"configMapRef": {"name": "zenml-modal-prefect"}},
        {"secretRef": {"name": "team-a"}},
    ]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["LEVEL"] == "high"
    # The flow of an evicted pod dies, and another pod goes on with its run: tests/integration/test_evicted.py.
    assert variables[eviction.VARIABLE] == "reschedule"
    assert variables[eviction.VARIABLE] in eviction.BEHAVIORS
    assert container["resources"]["requests"]
    assert container["resources"]["limits"]


def test_the_kubernetes_worker() -> None:
    path = DEPLOYMENTS / "kubernetes" / "worker.yaml"
    files.tool("kubernetes-validate", "--strict", path)
    objects = {found["kind"]: found for found in yaml.safe_load_all(path.read_text())}
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:3] == ["prefect", "worker", "start"]
    assert {"secrets"}.isdisjoint(resource for rule in objects["Role"]["rules"] for resource in rule["resources"])
