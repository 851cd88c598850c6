"""Real servers for the whole session: a Prefect server, a ZenML REST server, a loopback Modal.

Prefect's server listens where this process's client was told to ask, in ``tests/conftest.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests import servers
from tests.integration.lab import IMAGE, PROJECT, STACK_CODE, Lab
from tests.integration.workers import Worker, make_pool
from tests.loopback import LoopbackImage, LoopbackModal

PLACES = ("modal-v2", "modal-v1", "process")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("integration")


@pytest.fixture(scope="session")
def modal_server() -> Iterator[LoopbackModal]:
    from zenml.utils.pipeline_docker_image_builder import DEFAULT_DOCKER_PARENT_IMAGE

    image = LoopbackImage(
        python=servers.ROOT / ".venv-sandbox" / "bin" / "python",
        files={"/opt/stack-code": STACK_CODE},
        env={"PYTHONPATH": "/opt/stack-code", "ZENML_ANALYTICS_OPT_IN": "false", "OMP_NUM_THREADS": "1"},
    )
    with LoopbackModal(
        # The last one is ZenML's own, from which it builds where a user names no other.
        {IMAGE: image, IMAGE + "-other": image, DEFAULT_DOCKER_PARENT_IMAGE: image},
        secrets={"hf": {"HF_TOKEN": "hf-secret"}, "verbose": {"ZENML_LOGGING_VERBOSITY": "DEBUG"}},
        volumes=("models", "read"),
    ) as modal:
        yield modal


@pytest.fixture(scope="session")
def both_apis(folder: Path) -> Iterator[tuple[servers.Server, servers.Server]]:
    prefect = servers.prefect_server(folder, urlsplit(os.environ["PREFECT_API_URL"]).port, record_at_once=True)
    both = prefect.launch(), servers.zenml_server(folder).launch()
    try:
        yield both[0].wait(), both[1].wait()
    finally:
        for server in both:
            server.stop()


@pytest.fixture(scope="session")
def prefect_api(both_apis: tuple[servers.Server, servers.Server]) -> servers.Server:
    return both_apis[0]


@pytest.fixture(scope="module")
def other_prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A Prefect server that knows nothing of the lab: another profile's, or one for a single process."""
    server = servers.prefect_server(tmp_path_factory.mktemp("other")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def zenml_api(both_apis: tuple[servers.Server, servers.Server]) -> servers.Server:
    return both_apis[1]


@pytest.fixture(scope="session")
def lab(
    folder: Path, modal_server: LoopbackModal, prefect_api: servers.Server, zenml_api: servers.Server
) -> Iterator[Lab]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("ZENML", "MODAL"))]:
        del os.environ[name]
    os.environ |= servers.zenml_client_environment(folder / "zenml", zenml_api)
    os.environ |= modal_server.env
    forget_zenml()
    # As installed packages are, for this process; the sandboxes get both from their image.
    sys.path[:0] = [str(STACK_CODE), str(PROJECT)]
    from zenml.utils import source_utils

    # Under pytest-xdist there is no main module that ZenML could take for the user's.
    source_utils.set_custom_source_root(str(PROJECT))
    yield Lab(folder, modal_server, prefect_api, zenml_api)
    from prefect.logging.handlers import APILogWorker

    # Else Prefect's log thread tries for a minute to reach the server that is stopped next.
    APILogWorker.drain_all(timeout=10)
    os.environ.clear()
    os.environ.update(before)
    forget_zenml()


@pytest.fixture
def fresh_image(lab: Lab) -> str:
    """An image that was never pulled."""
    name = f"registry.example.com/fresh:{uuid4().hex[:8]}"
    python = servers.ROOT / ".venv-sandbox" / "bin" / "python"
    image = LoopbackImage(python, files={"/opt/stack-code": STACK_CODE}, env={"PYTHONPATH": "/opt/stack-code"})
    lab.modal.image_changes(name, image)
    return name


@pytest.fixture(scope="session")
def pool(lab: Lab, folder: Path) -> Iterator[str]:
    """A work pool with a worker, which all tests share: each start costs seconds."""
    name = f"pool-{uuid4().hex[:6]}"
    make_pool(name)
    worker = Worker(name, folder / "worker").start()
    yield name
    worker.stop()


def forget_zenml() -> None:
    """Let ZenML read its configuration again: a test that ran in this process before may have made it read another."""
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration

    GlobalConfiguration._reset_instance()
    Client._reset_instance()


@contextmanager
def another_client(environment: Mapping[str, str], without: Iterable[str] = ()) -> Iterator[None]:
    """This process is the client of ZenML that these variables make it while the block runs."""
    before = dict(os.environ)
    for name in without:
        del os.environ[name]
    os.environ |= environment
    forget_zenml()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        forget_zenml()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make test-all` what shows the same elsewhere: the runners' own tests cover every place."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        place = callspec.params.get("place") if callspec is not None else None
        if place not in PLACES:
            continue
        marker = item.get_closest_marker("at")
        if place not in (marker.args if marker is not None else ("modal-v2", "process")):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where sandboxes run. The SDK reads the variable at each create."""
    place: str = request.param
    monkeypatch.setenv("MODAL_SANDBOX_V2", "0" if place == "modal-v1" else "1")
    return place.partition("-")[0]
