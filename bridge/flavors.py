"""The flavour under which ZenML knows the orchestrator. Imports neither Modal nor Prefect.

ZenML imports this module wherever a stack is looked at, its own server included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenml.orchestrators import BaseOrchestratorConfig, BaseOrchestratorFlavor

from bridge import names
from bridge.settings import ModalPrefectOrchestratorConfig

if TYPE_CHECKING:
    from bridge.orchestrator import ModalPrefectOrchestrator


class ModalPrefectOrchestratorFlavor(BaseOrchestratorFlavor):
    """Runs pipelines as Prefect flows whose steps run in Modal sandboxes."""

    @property
    def name(self) -> str:
        """Name of the flavour, as stacks store it."""
        return names.FLAVOR

    @property
    def display_name(self) -> str:
        """Name of the flavour in dashboards."""
        return "Modal through Prefect"

    @property
    def docs_url(self) -> str | None:
        """None: a custom flavour has no page in ZenML's documentation."""
        return None

    @property
    def sdk_docs_url(self) -> str | None:
        """None, as for ``docs_url``."""
        return None

    @property
    def logo_url(self) -> str:
        """Logo in dashboards: the one ZenML hosts for Modal."""
        return "https://public-flavor-logos.s3.eu-central-1.amazonaws.com/orchestrator/modal.png"

    @property
    def config_class(self) -> type[BaseOrchestratorConfig]:
        """Class of the component's config."""
        return ModalPrefectOrchestratorConfig

    @property
    def implementation_class(self) -> type[ModalPrefectOrchestrator]:
        """Class of the orchestrator, imported only when one is made."""
        from bridge.orchestrator import ModalPrefectOrchestrator

        return ModalPrefectOrchestrator
