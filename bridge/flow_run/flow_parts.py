"""What each mode of a flow works with."""

from __future__ import annotations

from dataclasses import dataclass

from prefect.client.orchestration import PrefectClient

from bridge.flow_run.run import Run
from bridge.flow_run.step import Attempts
from bridge.runners.base import Runner
from bridge.watching.board import Board
from bridge.watching.logs import LogShipper
from bridge.zenml_side.zenml_calls import ZenMLCalls


@dataclass(frozen=True)
class FlowParts:
    """The parts of one process that is at work on one run. One event loop; who made them closes them."""

    run: Run
    runner: Runner
    """Where its sandboxes are."""
    client: PrefectClient
    """The one for the flow and all its task runs."""
    thread: ZenMLCalls
    """Where ZenML is called."""
    shipper: LogShipper
    """Where the output of its sandboxes goes."""
    board: Board
    """What people see of it."""
    attempts: Attempts
    """Who makes the attempts."""
