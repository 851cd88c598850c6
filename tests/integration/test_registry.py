"""A container registry whose credentials change while a run lasts: each image is pulled with those of its moment."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from bridge.errors import SandboxRefused
from bridge.flow_run.run import runner_of
from bridge.plan import SandboxSpec
from bridge.runners.base import Runner, SandboxRequest
from tests import servers
from tests.integration.lab import Lab
from tests.loopback import LoopbackImage

pytestmark = pytest.mark.slow

HOST = "registry.example.com"


def image(lab: Lab, password: str, repository: str = f"{HOST}/private") -> str:
    """An image that nobody has pulled yet, and that this password alone gets."""
    name = f"{repository}:{uuid4().hex[:8]}"
    python = servers.ROOT / ".venv-sandbox" / "bin" / "python"
    lab.modal.image_changes(name, LoopbackImage(python, credentials=("me", password)))
    return name


def stack_with(lab: Lab, registry: str) -> Any:
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind
    from zenml.stack import Stack

    orchestrator = lab.stack("modal", tags={"test": registry})
    parts = {Kind.ORCHESTRATOR: orchestrator, Kind.ARTIFACT_STORE: "shared", Kind.CONTAINER_REGISTRY: registry}
    return Stack.from_model(Client().create_stack(registry, components=parts))


async def run_in(runner: Runner, image: str) -> str:
    spec = SandboxSpec(image=image, timeout=60)
    sandbox = await runner.start(SandboxRequest(f"box-{uuid4().hex[:8]}", "zenml-registry", ("true",), spec))
    return str(await sandbox.wait())


@pytest.mark.parametrize(
    ("backend", "uri", "repository"),
    [
        ("v2", HOST, f"{HOST}/private"),
        ("v1", HOST, f"{HOST}/private"),
        ("v2", "docker.io/me", "me/ml"),  # as Docker calls what is in it
    ],
)
def test_a_password_that_changes_between_two_images(
    lab: Lab, backend: str, uri: str, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    monkeypatch.setenv("MODAL_SANDBOX_V2", str(int(backend == "v2")))
    client, name = Client(), f"changing-{uuid4().hex[:6]}"
    client.create_secret(name, {"username": "me", "password": "first"})
    given = {"uri": uri, "authentication_secret": name}
    client.create_stack_component(name, "default", Kind.CONTAINER_REGISTRY, given)
    stack = stack_with(lab, name)

    async def go() -> None:
        async with runner_of(stack.orchestrator.config, stack) as runner:
            assert await run_in(runner, image(lab, "first", repository)) == "exited with exit code 0"
            client.update_secret(name, add_or_update_values={"password": "second"})
            assert await run_in(runner, image(lab, "second", repository)) == "exited with exit code 0"
            client.delete_secret(name)
            with pytest.raises(SandboxRefused, match=f"registry `{name}` can't be read.*describe {name}"):
                await run_in(runner, image(lab, "second", repository))
            assert await run_in(runner, open_to_all) == "exited with exit code 0", "the registry has no say in it"

    open_to_all = f"registry.acme.com/open:{uuid4().hex[:8]}"
    lab.modal.image_changes(open_to_all, LoopbackImage(servers.ROOT / ".venv-sandbox" / "bin" / "python"))
    asyncio.run(go())


def test_a_token_of_a_service_connector(lab: Lab) -> None:
    """Another one is asked for with each image: of AWS with a secret key nobody is told that one is over."""
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    client, name = Client(), f"connected-{uuid4().hex[:6]}"
    first = {"username": "me", "password": "first", "registry": HOST}
    client.create_service_connector(name, "docker", auth_method="password", configuration=first, verify=False)
    client.create_stack_component(name, "default", Kind.CONTAINER_REGISTRY, {"uri": HOST})
    client.update_stack_component(name, Kind.CONTAINER_REGISTRY, connector_id=client.get_service_connector(name).id)
    stack = stack_with(lab, name)

    async def go() -> None:
        async with runner_of(stack.orchestrator.config, stack) as runner:
            assert await run_in(runner, image(lab, "first")) == "exited with exit code 0"
            client.update_service_connector(name, configuration={**first, "password": "second"}, verify=False)
            assert await run_in(runner, image(lab, "second")) == "exited with exit code 0"

    asyncio.run(go())
