"""The components of a stack that are this package's, and the place where the sandboxes of each are.

The two that a stack may have side by side, orchestrator and step operator, needn't share a runner, a Modal account or
an environment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import cast

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.models import ComponentResponse, StackResponse
from zenml.stack import StackComponent

from bridge import names, runners
from bridge.errors import RunNotPossible
from bridge.plan import RunnerKind
from bridge.runners.base import OUTAGE_SECONDS, Runner
from bridge.runners.registry import Registry
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectStepOperatorConfig

OurConfig = ModalPrefectOrchestratorConfig | ModalPrefectStepOperatorConfig

_KINDS = (StackComponentType.ORCHESTRATOR, StackComponentType.STEP_OPERATOR)


@dataclass(frozen=True)
class Place:
    """Where sandboxes are: two components with equal places have theirs side by side."""

    runner: RunnerKind
    token_id: str | None = field(default=None, repr=False)
    token_secret: str | None = field(default=None, repr=False)
    modal_environment: str | None = None

    def in_environments(self, modal_environments: Iterable[str]) -> dict[str, Place]:
        """Those in other environments of its account, by environment. Local processes have no environments."""
        if self.runner == "process":
            return {}
        return {name: replace(self, modal_environment=name) for name in modal_environments}

    def runner_for(self, registry: Registry | None = None, outage: float = OUTAGE_SECONDS) -> Runner:
        """Make its runner; ``registry`` may want a login for its images, ``outage`` is how long Modal may be away."""
        return runners.create(
            self.runner,
            token_id=self.token_id,
            token_secret=self.token_secret,
            registry=registry,
            outage=outage,
        )


def stack_named(name: str | None) -> StackResponse:
    """Return the stack of that name or id; the active one for None. Raises ``RunNotPossible`` if there is none."""
    client = Client()
    try:
        return client.get_stack(name, hydrate=True) if name is not None else client.active_stack_model
    except (KeyError, ValueError) as error:
        which = f"--stack {name}" if name is not None else "The active stack"
        raise RunNotPossible(f"{which}: there is no such stack. `zenml stack list` shows them.") from error


def ours(stack: StackResponse, *kinds: StackComponentType) -> list[ComponentResponse]:
    """Return a stack's components that are this package's, the orchestrator first; ``kinds`` chooses among them."""
    return [
        component
        for kind in kinds or _KINDS
        for component in stack.components.get(kind, [])
        if component.flavor_name == names.FLAVOR
    ]


def config_of(component: ComponentResponse) -> OurConfig:
    """Return the configuration of a component of this package.

    Read without the stack's other components, which may be broken. Raises ``BridgeError`` where it makes no sense.
    """
    return cast(OurConfig, StackComponent.from_model(component).config)


def place_of(config: OurConfig) -> Place:
    """Return where the sandboxes of a component are. Raises ``InvalidSettings`` where a secret that it names isn't."""
    if config.runner == "process":
        return Place("process")  # whatever else the component says is nothing to local processes
    return Place(config.runner, config.token_id, config.token_secret, config.modal_environment)


def title(component: ComponentResponse) -> str:
    """Return a component's kind and name, as people say them."""
    return f"{component.type.value.replace('_', ' ')} `{component.name}`"
