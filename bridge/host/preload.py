"""What every step of a run needs, loaded once before any is forked. Imports ZenML, never the user's code."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from uuid import UUID

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.integrations.registry import integration_registry
from zenml.models import (
    ArtifactVersionResponse,
    LogsResponse,
    PipelineRunResponse,
    PipelineSnapshotResponse,
    StackResponse,
    StepRunResponse,
)
from zenml.stack import Stack, StackComponent
from zenml.zen_stores.rest_zen_store import RestZenStore

from bridge import names
from bridge.host import patience
from bridge.host.entrypoint import use_source_root
from bridge.orchestrator import ModalPrefectOrchestrator
from bridge.plan import Plan
from bridge.zenml_side import step_runs


@dataclass(frozen=True, slots=True)
class Loaded:
    """A snapshot, its run, and its stack: None where it can't be loaded, and ``why_no_stack`` says why.

    That is so where a component can't be imported before the user's code is.
    """

    snapshot: PipelineSnapshotResponse
    run: PipelineRunResponse
    stack: Stack | None
    why_no_stack: str = ""


def load(snapshot_id: str, run_id: str) -> Loaded:
    """Open the store, and load all of it. Raises what ZenML raises where there is no such snapshot or run."""
    use_source_root(os.environ.get(names.ENV_SOURCE_ROOT) or os.getcwd())
    patience.open_store()
    client = Client()
    snapshot = client.zen_store.get_snapshot(UUID(snapshot_id))
    run = client.zen_store.get_run(UUID(run_id))
    if snapshot.stack is None:
        raise RuntimeError(f"The stack of snapshot {snapshot_id} was deleted")
    try:
        stack = _stack(snapshot.stack, run, snapshot)
    except Exception as error:
        # Whatever it is: a step in a process of its own meets it again, and then it is that step's failure.
        said = str(error).partition("\n")[0].rstrip(".")
        why = f"the stack {snapshot.stack.name} can't be loaded before the user's code ({type(error).__name__}: {said})"
        return Loaded(snapshot, run, None, why)
    return Loaded(snapshot, run, stack)


def _stack(model: StackResponse, run: PipelineRunResponse, snapshot: PipelineSnapshotResponse) -> Stack:
    integration_registry.activate_integrations()
    client = Client()
    # Children inherit what the client remembers: each of the two would be a request of every step.
    _, active = client.active_project, client.active_stack_model
    # A snapshot has the head of its stack alone, and ZenML would ask for the rest of what the client has just read.
    same = (active.id, active.updated) == (model.id, model.updated)
    stack = Stack.from_model(active if same else model)
    if not isinstance(client.zen_store, RestZenStore):
        # Children inherit SQLAlchemy's compiled statements, so the commonest is compiled here: a tenth of a second.
        step_runs.latest(run, list(snapshot.step_configurations)[:1])
    # So it is with what pydantic makes of a model when it is first needed.
    for asked_for in (LogsResponse, ArtifactVersionResponse, StepRunResponse):
        asked_for.model_rebuild()
    return stack


def plan_of(loaded: Loaded) -> Plan:
    """The plan of the run, for whoever runs all of it. Raises ``RuntimeError`` where another orchestrator does."""
    stack = loaded.snapshot.stack
    assert stack is not None
    if loaded.stack is not None:
        orchestrator: StackComponent = loaded.stack.orchestrator
    else:
        # The orchestrator alone, since the stack's other components may need the user's code.
        orchestrator = StackComponent.from_model(stack.components[StackComponentType.ORCHESTRATOR][0])
    if not isinstance(orchestrator, ModalPrefectOrchestrator):
        raise RuntimeError(f"The stack {stack.name} has an orchestrator of flavour {orchestrator.flavor}")
    return orchestrator.plan(loaded.snapshot)


def disconnect() -> None:
    """Close the store's connections; it opens new ones when it is asked next. Two processes must share none."""
    store = Client().zen_store
    if isinstance(store, RestZenStore):
        store.session.close()
        # urllib3 closes a connection when its pool is freed, and pools, also of adapters that the session had before,
        # are held by answers that were read, through which nobody has looked for garbage so far. A seventh of a second.
        gc.collect()
        return
    from zenml.zen_stores.sql_zen_store import SqlZenStore

    if not isinstance(store, SqlZenStore):
        raise RuntimeError(f"A ZenML store of an unknown kind: {type(store).__name__}")
    store.engine.dispose()
