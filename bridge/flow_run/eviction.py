"""SIGTERM to the process of a flow: a wish that its run stops, or a machine that is taken away?

Where a person or a script runs the flow it is the wish. A platform that ends machines by SIGTERM, as Kubernetes ends
pods, says so in Prefect's own variable for it (``prefect flow-run execute``; prefect-kubernetes sets it, and
``deployments/kubernetes/job-template.json`` does). There a flow dies as if it had been killed: its sandboxes and its
ZenML run live on, and the flow run's next process goes on with them.
"""

from __future__ import annotations

import logging
import os
from uuid import UUID

from prefect.exceptions import ObjectNotFound, TerminationSignal

from bridge.errors import PrefectUnavailable
from bridge.prefect_side.prefect_api import prefect_api

VARIABLE = "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"
BEHAVIORS = ("reschedule", "relinquish", "crash")
"""What it may say: Prefect runs the flow run again, the platform does, or a person."""

_logger = logging.getLogger(__name__)


def is_eviction(interruption: BaseException, flow_run_id: UUID) -> bool:
    """Whether what interrupted the flow takes its machine away rather than stopping its run.

    A cancel arrives as SIGTERM too, so Prefect is asked. Where it doesn't answer nothing is stopped: a run that was
    cancelled is stopped by its next process, one that was evicted couldn't be brought back.
    """
    if not isinstance(interruption, TerminationSignal) or os.environ.get(VARIABLE, "").lower() not in BEHAVIORS:
        return False
    try:
        with prefect_api() as client:
            try:
                state = client.read_flow_run(flow_run_id).state
            except ObjectNotFound:
                return False
    except PrefectUnavailable as error:
        _logger.warning("Can't see whether the run was cancelled or this machine is taken away: %s", error)
        return True
    return state is None or not (state.is_cancelling() or state.is_cancelled())
