"""Whether a cancel in Prefect that came while no process worked on a flow run is still to be carried out."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from prefect.client.schemas.objects import State, StateType

from bridge.flow_run.watch import cancelled_before

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)

CASES = {
    "pending running": False,
    "scheduled pending running": False,
    "pending cancelling running": True,
    "running cancelling crashed scheduled running": True,
    "running cancelling crashed scheduled pending running": True,
    "running crashed scheduled cancelled running": True,
    "running cancelling running": True,
    "running crashed scheduled running": False,
    "running cancelling crashed scheduled running crashed scheduled running": True,
    "running cancelling cancelled scheduled running": False,
    "running cancelling failed scheduled running": False,
    "running paused scheduled running": False,
    "running cancelling": True,
    "running": False,
    "": False,
}


@pytest.mark.parametrize("states", CASES)
def test_a_cancel_that_nobody_has_heeded(states: str) -> None:
    found = [
        State(type=StateType(name.upper()), timestamp=BEGIN + timedelta(seconds=at))
        for at, name in enumerate(states.split())
    ]
    assert cancelled_before(reversed(found)) is CASES[states]
