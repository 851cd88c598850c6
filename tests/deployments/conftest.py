"""What `deployments/` describes, started on loopback: all services of the compose file, out of its own commands.

Two things differ: ZenML's server has SQLite in MySQL's place, since no wheel brings MySQL, and sandboxes are those of
the loopback Modal.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.deployments import databases, files
from tests.deployments.containers import Container, Network, command
from tests.deployments.office import PASSWORDS, Office
from tests.integration.lab import IMAGE, STACK_CODE
from tests.loopback import LoopbackImage, LoopbackModal

# CMD of zenmldocker/zenml-server (docker/base.Dockerfile in ZenML's repository), which our image inherits.
ZENML_SERVER = [
    *("uvicorn", "zenml.zen_server.zen_server_api:app", "--no-server-header", "--proxy-headers"),
    *("--forwarded-allow-ips", "*", "--port", "8080", "--host", "0.0.0.0"),
]
UV = str(servers.ROOT / ".venv" / "bin" / "uv")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Readable for PostgreSQL's user, which pytest's own folders aren't."""
    path = Path(tempfile.mkdtemp(prefix="deployments-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[str, Path]:
    """The `bin` of what each Dockerfile installs, by the Dockerfile's name."""
    subprocess.run([UV, "build", "--wheel", "--out-dir", folder, servers.ROOT], check=True, capture_output=True)
    wheel = next(folder.glob("*.whl"))

    def build(name: str) -> Path:
        image = files.dockerfile(files.DEPLOYMENTS / f"{name}.Dockerfile")
        words = next(value for kind, value in image["final"] if kind == "RUN" and "pip install" in value)
        words = words.split("pip install", 1)[1].split("&&")[0].replace('"', "")
        for argument, value in image["arguments"].items():
            words = words.replace(f"${{{argument}}}", value)
        requirements = [str(wheel) if word == "/wheels/*.whl" else word for word in words.split()]
        venv = folder / name
        python = venv / "bin" / "python"
        subprocess.run(
            [UV, "venv", "--python", servers.ROOT / ".venv/bin/python", venv], check=True, capture_output=True
        )
        install = [UV, "pip", "install", "--python", python, *(word for word in requirements if word[:2] != "--")]
        subprocess.run(install, check=True, capture_output=True)
        return venv / "bin"

    return {path.stem: build(path.stem) for path in files.DOCKERFILES}


@pytest.fixture(scope="module")
def modal_server() -> Iterator[LoopbackModal]:
    image = LoopbackImage(
        python=servers.ROOT / ".venv-sandbox" / "bin" / "python",
        files={"/opt/stack-code": STACK_CODE},
        env={"PYTHONPATH": "/opt/stack-code", "ZENML_ANALYTICS_OPT_IN": "false"},
    )
    with LoopbackModal({IMAGE: image}) as modal:
        yield modal


@pytest.fixture(scope="module")
def services(folder: Path) -> dict[str, dict[str, Any]]:
    """The services of the compose file, as Compose sees them."""
    secrets = folder / "server.secrets.env"
    secrets.write_text("".join(f"{name}={value}\n" for name, value in PASSWORDS.items()))
    found: dict[str, dict[str, Any]] = files.compose(files.DEPLOYMENTS / "environments" / "development.env", secrets)
    return found["services"]


@pytest.fixture(scope="module")
def network() -> Network:
    return Network("postgres:5432", "redis:6379", "prefect-server:4200", "zenml-server:8080", "worker:8080")


@pytest.fixture(scope="module")
def prefect_services(services: dict[str, Any], network: Network, folder: Path) -> Iterator[dict[str, Container]]:
    """PostgreSQL, Redis, and Prefect's server in its two halves; not waited for."""
    with contextlib.ExitStack() as stack:

        def keep(container: Container) -> Container:
            stack.callback(container.stop)
            return container

        def made(name: str) -> Container:
            service = services[name]
            health = network.argv(service["healthcheck"]["test"][1:]) if "healthcheck" in service else None
            variables = network.environment(service["environment"])
            return Container(name, network.argv(service["command"]), variables, files.TOOLS, folder / name, health)

        for name in ("postgres", "redis"):
            (folder / name).mkdir()
        keep(databases.postgres(services["postgres"], network, folder / "postgres"))
        keep(databases.redis(services["redis"], network, folder / "redis")).until_healthy()
        made("prefect-migrate").run()
        yield {name: keep(made(name).start()) for name in ("prefect-server", "prefect-services")}


@pytest.fixture(scope="module")
def zenml_server(
    services: dict[str, Any], network: Network, images: dict[str, Path], modal_server: LoopbackModal, folder: Path
) -> Iterator[Container]:
    service = services["zenml-server"]
    variables = {name: value for name, value in service["environment"].items() if name != "ZENML_STORE_URL"}
    own = {"ZENML_CONFIG_PATH": str(folder / "zenml-server" / "config"), "PYTHONPATH": str(STACK_CODE)}
    container = Container(
        "zenml-server",
        network.argv(ZENML_SERVER),
        {**network.environment(variables), **own, "PREFECT_HOME": str(folder / "zenml-server" / "prefect")},
        images["zenml-server"],
        folder / "zenml-server",
        network.argv(service["healthcheck"]["test"][1:]),
    )
    yield container.start()
    container.stop()


@pytest.fixture(scope="module")
def office(
    prefect_services: dict[str, Container],
    zenml_server: Container,
    network: Network,
    images: dict[str, Path],
    modal_server: LoopbackModal,
    folder: Path,
) -> Office:
    """All servers healthy, and somebody's machine that is logged in to them, with a stack."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(Container.until_healthy, [prefect_services["prefect-server"], zenml_server]))
    return Office(folder / "office", network, modal_server).prepare()


@pytest.fixture(scope="module")
def worker(office: Office, network: Network, images: dict[str, Path], folder: Path) -> Iterator[Container]:
    """The worker as its Dockerfile starts it, with the secrets that the how-to says."""
    api_key = office.follow("worker")["api key"]
    image = files.dockerfile(files.DEPLOYMENTS / "worker.Dockerfile")
    home = folder / "worker"
    variables = {
        **{name: value.replace("/home/worker", str(home)) for name, value in image["environment"].items()},
        **files.environment(files.DEPLOYMENTS / "environments" / "development.env"),
        # worker.secrets.env
        "ZENML_STORE_API_KEY": api_key,
        "PREFECT_API_AUTH_STRING": PASSWORDS["PREFECT_AUTH_STRING"],
        # The tests' own: the loopback Modal with its token; an artifact store's flavour, as an integration brings it;
        # the health server's port, which is 8080 in a container.
        **office.modal.env,
        "PYTHONPATH": str(STACK_CODE),
        "PREFECT_WORKER_WEBSERVER_PORT": network.port("worker:8080"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    del variables["MODAL_ENVIRONMENT"]
    health = [
        word.replace("8080", network.port("worker:8080")) for word in command(files.instruction(image, "HEALTHCHECK"))
    ]
    argv = command(files.instruction(image, "CMD"))
    container = Container("worker", argv, network.environment(variables), images["worker"], home, health)
    office.follow("deploy")
    yield container.start().until_healthy()
    container.stop()
