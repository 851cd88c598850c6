"""Our orchestrator, but for submitting: tests start ``bridge.host`` themselves, without a flow."""

from __future__ import annotations

from uuid import uuid4

from zenml.client import Client
from zenml.models import PipelineRunUpdate

from bridge.flavors import ModalPrefectOrchestratorFlavor
from bridge.orchestrator import ModalPrefectOrchestrator


class HostTestOrchestrator(ModalPrefectOrchestrator):
    def submit_pipeline(self, snapshot, stack, base_environment, step_environments, placeholder_run=None):
        Client().zen_store.update_run(placeholder_run.id, PipelineRunUpdate(orchestrator_run_id=str(uuid4())))


class HostTestFlavor(ModalPrefectOrchestratorFlavor):
    @property
    def name(self) -> str:
        return "host-test"

    @property
    def implementation_class(self):
        return HostTestOrchestrator
