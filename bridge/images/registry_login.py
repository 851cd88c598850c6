"""Who pulls the images of a stack's container registry: ZenML is asked, each time anew, since tokens run out."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from zenml.client import Client
from zenml.container_registries import BaseContainerRegistry
from zenml.enums import StackComponentType
from zenml.stack import Stack, StackComponent

from bridge.errors import RunnerUnavailable, SandboxRefused
from bridge.runners.registry import Registry
from bridge.zenml_side.zenml_away import couldnt_ask


def registry_of(stack: Stack) -> Registry | None:
    """The stack's container registry, and how its user and password are asked for. Nothing is asked yet."""
    registry = stack.container_registry
    return Registry(registry.config.uri, lambda: _login(registry.id, registry.name)) if registry else None


def _login(component_id: UUID, name: str) -> tuple[str, str] | None:
    try:
        # Not the stack's own, which keeps what it was told until its service connector says that this is over: that of
        # AWS with a secret key never says so, and what it makes of it is over after 12 hours.
        model = Client().get_stack_component(StackComponentType.CONTAINER_REGISTRY, component_id)
        return cast(BaseContainerRegistry, StackComponent.from_model(model)).credentials
    except Exception as error:
        # A service connector or a secret store may raise anything of its own.
        text = f"The credentials of the container registry `{name}` can't be read ({type(error).__name__}: {error})."
        if couldnt_ask(error):
            raise RunnerUnavailable(text) from error
        raise SandboxRefused(
            f"{text} `zenml container-registry describe {name}` shows where they come from."
        ) from error
