"""Bad input on registered stacks, end to end: one clear error, and nothing of the run has begun.

What is wrong stands as data in :mod:`tests.unit.bad_inputs`, whose unit tests feed it to settings and translation.
Here it goes the way a user sends it: through ZenML's client, a registered component, a pipeline that is called.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.integration.lab import Lab, Ran, eventually
from tests.unit import bad_inputs
from tests.unit.bad_inputs import BadInput

PER_STEP = {"execution_mode": "per_step"}


@dataclass(frozen=True)
class Counts:
    """Everything that a run would leave behind."""

    sandboxes: int
    flow_runs: int
    step_runs: int
    schedules: int
    image_builds: int

    @classmethod
    def now(cls, lab: Lab) -> Counts:
        from zenml.client import Client

        stats = lab.modal.stats()
        flow_runs = httpx.post(f"{lab.prefect.url}/api/flow_runs/count", json={}, timeout=30)
        flow_runs.raise_for_status()
        client = Client()
        return cls(
            sandboxes=stats.created,
            flow_runs=flow_runs.json(),
            step_runs=client.list_run_steps(size=1).total,
            schedules=client.list_schedules(size=1).total,
            image_builds=stats.image_builds,
        )


@contextmanager
def nothing_begins(lab: Lab) -> Iterator[None]:
    """Compare what there is before and after."""
    before = Counts.now(lab)
    yield
    assert Counts.now(lab) == before


def message_of(ran: Ran) -> str:
    """What the user gets to see; the run is refused, and where ZenML made one already it has ended."""
    assert ran.error is not None, "nobody refused it"
    if ran.run is not None:
        assert ran.run.status.is_finished, f"a run is left {ran.status}"
    assert not (ran.folder / "ran").exists()
    return str(ran.error)


def names_all(message: str, *fragments: str) -> None:
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"{missing} not in: {message}"


def step_updates(case: BadInput) -> dict[str, dict[str, Any]]:
    """The steps' own configuration as ``pipeline.with_options(steps=...)`` takes it."""
    updates: dict[str, dict[str, Any]] = {}
    for name, given in case.steps.items():
        settings = {
            **({"orchestrator": dict(given.settings)} if given.settings else {}),
            **({"resources": dict(given.resources)} if given.resources else {}),
        }
        update = {**({"settings": settings} if settings else {}), **({"retry": given.retry} if given.retry else {})}
        if update:
            updates[name] = update
    return updates


def call(lab: Lab, case: BadInput, place: str) -> Ran:
    import inputs

    resources = {"resources": dict(case.resources)} if case.resources else {}
    options = {
        **({"steps": updates} if (updates := step_updates(case)) else {}),
        **({"retry": dict(case.retry)} if case.retry else {}),
    }
    if case.dynamic:
        return lab.run(inputs.dynamic, lab.stack(place))
    pipeline = inputs.given.with_options(settings=resources) if resources else inputs.given
    return lab.run(pipeline, lab.stack(place), settings=case.settings, options=options, names=list(case.steps))


RUNNABLE = [
    case
    for case in [*bad_inputs.SETTINGS, *bad_inputs.RUN_LEVEL_ON_A_STEP, *bad_inputs.STEPS, *bad_inputs.PIPELINE_MODE]
    if case.zenml_takes and case.images is None
]


@pytest.mark.parametrize("case", RUNNABLE, ids=lambda case: case.id)
def test_a_pipeline_is_refused(lab: Lab, case: BadInput) -> None:
    with nothing_begins(lab):
        message = message_of(call(lab, case, "modal"))
    names_all(message, *case.says)
