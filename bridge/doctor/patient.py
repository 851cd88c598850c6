"""What the checks look at: read once, when the first check asks for it."""

from __future__ import annotations

from functools import cached_property
from typing import cast

from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.enums import StackComponentType, StoreType
from zenml.models import ComponentResponse, StackResponse
from zenml.stack import Stack
from zenml.zen_stores.base_zen_store import BaseZenStore

from bridge.components import OurConfig, config_of, ours, stack_named
from bridge.errors import BridgeError
from bridge.settings import ModalPrefectOrchestratorConfig


class Unmet(Exception):
    """A check can't look, because something before it isn't in order; the message says what."""


class Patient:
    """One environment: this machine, and a stack (``None``: the active one).

    Args:
        stack: The stack's name or id.
        image: The image for a round trip through a sandbox; None takes the newest that the stack built.
    """

    def __init__(self, stack: str | None = None, image: str | None = None) -> None:
        self.stack_name = stack
        self.image = image

    @cached_property
    def server_url(self) -> str | None:
        """Where ZenML's server should be, read without asking it; None where ZenML has a local database."""
        config = GlobalConfiguration().store_configuration
        return config.url.rstrip("/") if config.type == StoreType.REST else None

    @cached_property
    def store(self) -> BaseZenStore:
        """ZenML's store. Raises whatever ZenML raises where it can't be reached."""
        return Client().zen_store

    @cached_property
    def stack_model(self) -> StackResponse:
        """The stack, as ZenML has it. Raises ``RunNotPossible`` if there is none."""
        return stack_named(self.stack_name)

    @cached_property
    def stack(self) -> Stack:
        """The stack with its components, loaded. Raises ``ImportError`` where a component's code is missing."""
        return Stack.from_model(self.stack_model)

    @cached_property
    def read(self) -> tuple[tuple[ComponentResponse, OurConfig | BridgeError], ...]:
        """What the stack has of this package, the orchestrator first, then its step operators.

        Each has its configuration, or what is wrong with it, and is read without the stack's other components, which
        may be broken. Raises ``Unmet`` where there is none.
        """
        found = ours(self.stack_model)
        if not found:
            raise Unmet("the stack has no component of this package")
        return tuple((component, _read(component)) for component in found)

    @property
    def components(self) -> tuple[tuple[ComponentResponse, OurConfig], ...]:
        """Those whose configuration makes sense. Raises ``Unmet`` where the stack has none of this package."""
        return tuple((component, config) for component, config in self.read if not isinstance(config, BridgeError))

    @property
    def unreadable(self) -> tuple[tuple[ComponentResponse, BridgeError], ...]:
        """The others. Raises ``Unmet`` as well."""
        return tuple((component, error) for component, error in self.read if isinstance(error, BridgeError))

    @property
    def work_pool(self) -> str | None:
        """The work pool whose workers carry the stack's runs out; None where whoever submits them does."""
        configs = [config for _, config in self.components if isinstance(config, ModalPrefectOrchestratorConfig)]
        return configs[0].work_pool if configs else None

    @property
    def has_registry(self) -> bool:
        """Whether the stack has a container registry."""
        return bool(self.stack_model.components.get(StackComponentType.CONTAINER_REGISTRY))

    @property
    def orchestrator_config(self) -> ModalPrefectOrchestratorConfig:
        """The configuration of the orchestrator. Raises ``Unmet`` where it isn't this package's.

        Raises ``BridgeError`` where it makes no sense.
        """
        component, config = self.read[0]
        if component.type is not StackComponentType.ORCHESTRATOR:
            raise Unmet("the stack's orchestrator isn't this package's, so Prefect has no part in its runs")
        if isinstance(config, BridgeError):
            raise config
        return cast(ModalPrefectOrchestratorConfig, config)


def _read(component: ComponentResponse) -> OurConfig | BridgeError:
    try:
        return config_of(component)
    except BridgeError as error:
        return error
