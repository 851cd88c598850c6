"""What the checks look at: read once, when the first check asks for it."""

from __future__ import annotations

from functools import cached_property

from zenml.client import Client
from zenml.models import ComponentResponse, StackResponse
from zenml.stack import Stack
from zenml.zen_stores.base_zen_store import BaseZenStore

from bridge.components import OurConfig, config_of, ours
from bridge.errors import BridgeError
from bridge.settings import ModalPrefectOrchestratorConfig


class Unmet(Exception):
    """A check can't look, because something before it isn't in order; the message says what."""


class NoSuchStack(BridgeError):
    """The stack to be looked at doesn't exist."""


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
    def store(self) -> BaseZenStore:
        """ZenML's store. Raises whatever ZenML raises where it can't be reached."""
        return Client().zen_store

    @cached_property
    def stack_model(self) -> StackResponse:
        """The stack, as ZenML has it. Raises ``NoSuchStack``."""
        client = Client()
        if self.stack_name is None:
            return client.active_stack_model
        try:
            return client.get_stack(self.stack_name, hydrate=True)
        except (KeyError, ValueError) as error:
            raise NoSuchStack(
                f"--stack {self.stack_name}: ZenML has no such stack. `zenml stack list` shows them."
            ) from error

    @cached_property
    def stack(self) -> Stack:
        """The stack with its components, loaded. Raises ``ImportError`` where a component's code is missing."""
        return Stack.from_model(self.stack_model)

    @cached_property
    def components(self) -> tuple[tuple[ComponentResponse, OurConfig], ...]:
        """What the stack has of this package, each with its configuration: the orchestrator first, its step operators.

        Read without the stack's other components, which may be broken. Raises ``Unmet`` where there is none,
        ``BridgeError`` where a configuration makes no sense.
        """
        found = ours(self.stack_model)
        if not found:
            raise Unmet("the stack has no component of this package")
        return tuple((component, config_of(component)) for component in found)

    @property
    def orchestrator_config(self) -> ModalPrefectOrchestratorConfig:
        """The configuration of the orchestrator. Raises ``Unmet`` where it isn't this package's."""
        _, first = self.components[0]
        if not isinstance(first, ModalPrefectOrchestratorConfig):
            raise Unmet("the stack's orchestrator isn't this package's, so Prefect has no part in its runs")
        return first
