"""What a refused run leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from tests.integration.lab import Lab, Ran


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
        client = Client()
        return cls(
            sandboxes=stats.created,
            flow_runs=count_flow_runs(lab, {}) - count_flow_runs(lab, {"tags": {"all_": ["auto-scheduled"]}}),
            step_runs=client.list_run_steps(size=1).total,
            schedules=client.list_schedules(size=1).total,
            image_builds=stats.image_builds,
        )


def count_flow_runs(lab: Lab, chosen: dict[str, object]) -> int:
    """How many flow runs there are. Prefect's scheduler, which may be at work for another test, tags its own."""
    response = httpx.post(f"{lab.prefect.url}/api/flow_runs/count", json={"flow_runs": chosen}, timeout=30)
    response.raise_for_status()
    return int(response.json())


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
