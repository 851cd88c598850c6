"""What ZenML's launcher of a step needs not ask for once more, since the step's process knows it. Imports ZenML."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.execution.context import setup_execution_context
from zenml.models import PipelineSnapshotResponse

from bridge import names

_snapshot: ContextVar[PipelineSnapshotResponse | None] = ContextVar("_snapshot", default=None)


@contextmanager
def snapshot_is_loaded(snapshot: PipelineSnapshotResponse) -> Iterator[None]:
    """Within, :func:`loaded` returns this one."""
    token = _snapshot.set(snapshot)
    try:
        yield
    finally:
        _snapshot.reset(token)


def loaded(snapshot: PipelineSnapshotResponse) -> PipelineSnapshotResponse:
    """The same snapshot as this process has loaded it, else this one, which is loaded when it is asked."""
    known = _snapshot.get()
    return known if known is not None and known.id == snapshot.id else snapshot


@contextmanager
def begun_run() -> Iterator[None]:
    """Within, ZenML's launcher takes the run as it is now, if a step of it has begun.

    It would find the same one, but lists the sandbox's Python packages before (``pip freeze``, half a second of
    processor time), for a run which doesn't know them yet: the first step tells them, as always.
    """
    run_id = os.environ.get(names.ENV_RUN_ID)
    run = Client().zen_store.get_run(UUID(run_id)) if run_id is not None else None
    if run is None or run.status in (ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING):
        yield
        return
    with setup_execution_context(run) as context:
        if context is not None:  # as it is where a variable of ZenML's forbids it
            context.step_runs = {}  # ZenML's own keeps a hundred: a step with more inputs would fail
        yield
