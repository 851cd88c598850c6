"""Flow runs whose work is a test's or a benchmark's own, opened as the package opens them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext

from bridge.flow_run.open_run import open_run
from bridge.flow_run.run import Run
from bridge.own_loop import on_own_loop


def flow_of(work: Callable[[Run], Coroutine[Any, Any, State[None]]], name: str) -> Flow[Any, Any]:
    """A flow with the parameters of the package's, which does ``work`` with the run that it opens."""

    @flow(name=name, persist_result=False)
    def opened(snapshot_id: UUID, run_id: UUID) -> State[None]:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        run = open_run(snapshot_id, run_id, str(context.flow_run.id))
        return on_own_loop(lambda: work(run))

    return opened
