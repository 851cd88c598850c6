"""The sweep as a Prefect flow, to be scheduled: ``flows/sweep.py`` and ``prefect.yaml`` deploy it.

Loads Prefect alone until the flow runs, as :mod:`bridge.flow` does.
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from bridge import names
from bridge.errors import BridgeError
from bridge.watching.quiet import only_warn_of_requests


@flow(name=names.SWEEP, persist_result=False)
def sweep_stacks(stack: str | None = None, end: bool = True, tolerance: float | None = None) -> State[None]:
    """End the runs and sandboxes that nobody owns.

    Args:
        stack: The ZenML stack to look at. Leave it empty for all with an orchestrator or step operator `modal-prefect`.
        end: Whether to end what is found. Without it, the log lists it.
        tolerance: By how many seconds the clocks of two machines may differ. Leave it empty for a minute.
    """
    only_warn_of_requests()
    from bridge.cleanup.lease import CLOCKS_SECONDS
    from bridge.cleanup.ownership import Owner
    from bridge.cleanup.sweep import stacks, sweep
    from bridge.watching.terminal import show_once

    show_once()
    logger = get_run_logger()
    try:
        chosen = stacks(stack, everything=stack is None)
    except BridgeError as error:
        return Failed(message=str(error))
    problems: list[str] = []
    ended = left = 0
    for one in chosen:
        report = sweep(one, end=end, tolerance=CLOCKS_SECONDS if tolerance is None else tolerance)
        for line in report.lines():
            logger.info("%s", line)
        problems += [f"stack {report.stack}: {problem}" for problem in report.problems]
        ended += len(report.ended)
        left += len(report.of(Owner.NOBODY)) - len(report.ended)
    said = f"Ended {ended} runs, left {left} that nobody owns."
    if problems:
        return Failed(message=f"{said} {' '.join(problems)}")
    return Completed(message=said)
