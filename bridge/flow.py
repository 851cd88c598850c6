"""The Prefect flow that runs a ZenML pipeline.

A sync flow with an async core on a loop and thread of its own (:mod:`bridge.own_loop`): ``prefect flow-run retry``
never awaits an async flow and runs a sync one inside its own loop, notebooks have a loop already, and a thread is as
good a caller as any other.

Who deploys the flow imports this module, and so does each process that runs it: it loads Prefect alone. ZenML takes
seconds, and shows what every library logs from INFO on (:mod:`bridge.flow_run.carrying_out`).
"""

from __future__ import annotations

from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Crashed

from bridge import names
from bridge.watching.quiet import only_warn_of_requests


@flow(name=names.DEPLOYMENT, persist_result=False)
def zenml_pipeline(snapshot_id: UUID, run_id: UUID | None = None) -> State[None]:
    """Run a ZenML pipeline, its steps in Modal sandboxes.

    The stack, its orchestrator's settings and the steps come from the snapshot. Tokens are never parameters:
    the ZenML client, Prefect and Modal are configured where this flow runs.

    Args:
        snapshot_id: The ZenML snapshot to run: `zenml pipeline snapshot list` shows their ids. It must have
            been made for a stack whose orchestrator is of flavour `modal-prefect`.
        run_id: The ZenML run to go on with. Leave it empty: a new run is made. It is set for flow runs that
            ZenML submitted itself.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("`zenml_pipeline` is a Prefect flow: call it, not its function.")
    # Before ZenML comes: while it is imported Prefect's logs are sent, each by a request.
    only_warn_of_requests()
    try:
        from bridge.flow_run.carrying_out import run_pipeline
    except Exception as error:
        if context.flow_run.run_count > 1:
            why = f"This environment can't run flows: {type(error).__name__}: {error}"
            return left_as_it_is(str(context.flow_run.id), why, error)
        raise
    return run_pipeline(context.flow_run, snapshot_id, run_id)


def left_as_it_is(flow_run_id: str, why: str, defect: Exception | None = None) -> State[None]:
    """The state of a flow run that this process couldn't take up, for which reason: it is as the one before left it.

    Not Failed: ZenML would hear of that (:mod:`bridge.submitting.status`) and nothing could go on with the run any
    more.
    """
    how = f"The run hasn't ended: when that is mended, `modal-prefect resume {flow_run_id}` goes on with it."
    message = f"{why.rstrip('.')}. {how}"
    get_run_logger().error("%s", message, exc_info=defect)
    return Crashed(message=message)
