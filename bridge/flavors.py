"""The flavours under which ZenML knows both components. Imports neither Modal nor Prefect.

ZenML imports this module wherever a stack is looked at, its own server included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenml.orchestrators import BaseOrchestratorConfig, BaseOrchestratorFlavor
from zenml.stack import Flavor
from zenml.step_operators import BaseStepOperatorConfig, BaseStepOperatorFlavor

from bridge import names
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectStepOperatorConfig

if TYPE_CHECKING:
    from bridge.orchestrator import ModalPrefectOrchestrator
    from bridge.step_operator import ModalPrefectStepOperator

_LOGOS = "https://public-flavor-logos.s3.eu-central-1.amazonaws.com"


class _ModalPrefectFlavor(Flavor):
    """What both flavours have in common."""

    @property
    def name(self) -> str:
        """Name of the flavour, as stacks store it."""
        return names.FLAVOR

    @property
    def docs_url(self) -> str | None:
        """None: a custom flavour has no page in ZenML's documentation."""
        return None

    @property
    def sdk_docs_url(self) -> str | None:
        """None, as for ``docs_url``."""
        return None


class ModalPrefectOrchestratorFlavor(_ModalPrefectFlavor, BaseOrchestratorFlavor):
    """Runs pipelines as Prefect flows whose steps run in Modal sandboxes."""

    @property
    def display_name(self) -> str:
        """Name of the flavour in dashboards."""
        return "Modal through Prefect"

    @property
    def logo_url(self) -> str:
        """Logo in dashboards: the one ZenML hosts for Modal."""
        return f"{_LOGOS}/orchestrator/modal.png"

    @property
    def config_class(self) -> type[BaseOrchestratorConfig]:
        """Class of the component's config."""
        return ModalPrefectOrchestratorConfig

    @property
    def implementation_class(self) -> type[ModalPrefectOrchestrator]:
        """Class of the orchestrator, imported only when one is made."""
        from bridge.orchestrator import ModalPrefectOrchestrator

        return ModalPrefectOrchestrator


class ModalPrefectStepOperatorFlavor(_ModalPrefectFlavor, BaseStepOperatorFlavor):
    """Runs single steps of any orchestrator's pipelines in Modal sandboxes."""

    @property
    def display_name(self) -> str:
        """Name of the flavour in dashboards."""
        return "Modal sandboxes"

    @property
    def logo_url(self) -> str:
        """Logo in dashboards: the one ZenML hosts for Modal."""
        return f"{_LOGOS}/step_operator/modal.png"

    @property
    def config_class(self) -> type[BaseStepOperatorConfig]:
        """Class of the component's config."""
        return ModalPrefectStepOperatorConfig

    @property
    def implementation_class(self) -> type[ModalPrefectStepOperator]:
        """Class of the step operator, imported only when one is made."""
        from bridge.step_operator import ModalPrefectStepOperator

        return ModalPrefectStepOperator
