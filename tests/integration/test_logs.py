"""What steps print arrives in Prefect: while they run, whole, in order, bounded, whatever the bytes."""

from __future__ import annotations

import threading
from pathlib import Path
from uuid import UUID

import pytest

from bridge.watching.logs import FIRST_LINES, LAST_LINES
from tests.integration.lab import Lab, eventually


@pytest.fixture
def shapes(lab: Lab):  # type: ignore[no-untyped-def]
    import shapes

    return shapes


@pytest.mark.at("modal-v2")
def test_lines_are_there_while_the_step_runs(lab: Lab, shapes, place: str, tmp_path: Path) -> None:
    """The step prints a line and then waits for a file, which is made when the line has arrived in Prefect."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter
    from zenml.client import Client
    from zenml.zen_stores.rest_zen_store import RestZenStore

    from bridge.host.fresh_keys import FreshKeys

    seen: list[list[str]] = []

    def watch() -> None:
        waiting = tmp_path / "hung.jsonl"
        eventually(lambda: waiting.exists(), bool, 90)
        run = Client().list_pipeline_runs(size=1, sort_by="desc:created").items[0]
        flow_run = UUID(run.orchestrator_run_id)
        with get_client(sync_client=True) as client:

            def read() -> list[str]:
                chosen = LogFilter(flow_run_id={"any_": [flow_run]})  # type: ignore[arg-type]
                return [log.message for log in client.read_logs(chosen, limit=200)]

            seen.append(eventually(read, lambda found: "it hangs now" in found, 30))
        (tmp_path / "go").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    ran = lab.run(shapes.telling, lab.stack(place), settings={"execution_mode": "per_step"}, into=tmp_path)
    watcher.join()
    assert "it hangs now" in seen[0]
    assert ran.status == "completed"
    # The flow ran in this process: what a killed server of ZenML's leaves open is asked for anew here too.
    store = Client().zen_store
    assert isinstance(store, RestZenStore)
    asks = store.session.get_adapter(store.url)
    assert isinstance(asks, FreshKeys)
    assert (asks.max_retries.connect, asks.max_retries.backoff_max) == (5, 10)


@pytest.mark.at("modal-v2")
@pytest.mark.slow  # the shipper and the runners have tests of their own of both
def test_many_lines_and_bad_bytes(lab: Lab, shapes, place: str) -> None:
    lines = 100_000
    ran = lab.run(shapes.flood, lab.stack(place), settings={"execution_mode": "per_step"}, lines=lines)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    messages = lab.logs(ran.task_runs["printer"], at_least=FIRST_LINES)
    numbered = [message for message in messages if message.startswith("line ")]
    assert numbered[:3] == ["line 0", "line 1", "line 2"]
    assert numbered[-1] == f"line {lines - 1}"
    assert numbered == sorted(numbered, key=lambda message: int(message.split()[1]))
    assert any("lines left out here" in message for message in messages)
    assert len(messages) <= FIRST_LINES + LAST_LINES + 1
    assert any("\ufffd" in message and message.startswith("bad bytes:") for message in messages)
