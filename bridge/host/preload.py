"""What every step of a run needs, loaded once before any is forked. Imports ZenML, never the user's code."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from uuid import UUID

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.integrations.registry import integration_registry
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, StackResponse
from zenml.stack import Stack, StackComponent
from zenml.zen_stores.rest_zen_store import RestZenStore

from bridge import names, step_runs
from bridge.host import patience
from bridge.host.entrypoint import use_source_root
from bridge.orchestrator import ModalPrefectOrchestrator
from bridge.plan import Plan

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A snapshot, its run, its plan, and its stack: None where a component can't be imported before user code is."""

    snapshot: PipelineSnapshotResponse
    run: PipelineRunResponse
    plan: Plan
    stack: Stack | None


def load(snapshot_id: str, run_id: str) -> Loaded:
    """Open the store, and load all of it. Raises what ZenML raises where there is no such snapshot or run."""
    use_source_root(os.environ.get(names.ENV_SOURCE_ROOT) or os.getcwd())
    patience.open_store()
    client = Client()
    snapshot = client.zen_store.get_snapshot(UUID(snapshot_id))
    run = client.zen_store.get_run(UUID(run_id))
    if snapshot.stack is None:
        raise RuntimeError(f"The stack of snapshot {snapshot_id} was deleted")
    integration_registry.activate_integrations()
    plan = _orchestrator(snapshot.stack).plan(snapshot)
    try:
        stack = Stack.from_model(snapshot.stack)
    except ImportError as error:
        _logger.warning("The stack %s can't be loaded before its code is: %s", snapshot.stack.name, error)
        return Loaded(snapshot, run, plan, None)
    # Children inherit what the client remembers: each of the two would be a request of every step.
    _ = client.active_project, client.active_stack_model.components[StackComponentType.ARTIFACT_STORE][0].configuration
    # Children inherit SQLAlchemy's compiled statements, so the commonest is compiled here: a tenth of a second.
    step_runs.latest(run, list(snapshot.step_configurations)[:1])
    return Loaded(snapshot, run, plan, stack)


def _orchestrator(stack: StackResponse) -> ModalPrefectOrchestrator:
    # Alone, since the stack's other components may need the user's code.
    model = stack.components[StackComponentType.ORCHESTRATOR][0]
    orchestrator = StackComponent.from_model(model)
    if not isinstance(orchestrator, ModalPrefectOrchestrator):
        raise RuntimeError(f"The stack {stack.name} has an orchestrator of flavour {model.flavor_name}")
    return orchestrator


def disconnect() -> None:
    """Close the store's connections; it opens new ones when it is asked next. Two processes must share none."""
    store = Client().zen_store
    if isinstance(store, RestZenStore):
        store.session.close()
        return
    from zenml.zen_stores.sql_zen_store import SqlZenStore

    if not isinstance(store, SqlZenStore):
        raise RuntimeError(f"A ZenML store of an unknown kind: {type(store).__name__}")
    store.engine.dispose()
