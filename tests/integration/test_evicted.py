"""A pod that is evicted: its flow dies, nothing of its run is stopped, and the next pod goes on with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from bridge.flow_run import eviction
from tests.integration.lab import STACK_CODE, Lab, eventually
from tests.integration.under import Under, cancel, living
from tests.integration.workers import BIN, make_pool


@contextmanager
def pod(under: Under, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What a pod runs, with the variable that the job template gives it."""
    environment = {**os.environ, "PYTHONPATH": str(STACK_CODE), eviction.VARIABLE: "reschedule"}
    command = [str(BIN / "prefect"), "flow-run", "execute", str(under.flow_run_id)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def state_of(under: Under) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(under.flow_run_id).state.name)


@pytest.mark.slow
def test_the_next_pod_goes_on_with_the_run(lab: Lab, tmp_path: Path) -> None:
    """And that one is cancelled: its SIGTERM does stop the run."""
    import stoppable

    pool = f"pods-{uuid4().hex[:6]}"
    make_pool(pool)
    under = Under(lab, tmp_path)
    stack = lab.stack("modal", work_pool=pool, synchronous=False)
    lab.run(stoppable.telling_twice, stack, settings={"execution_mode": "per_step"}, into=tmp_path, begun=False)
    log = tmp_path / "pod.log"

    with pod(under, log) as first:
        under.until_steps({"first": "running"})
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0, log.read_text()[-3000:]
    assert state_of(under) == "AwaitingRetry"
    under.until_steps({"first": "running"})
    assert all(living(pid) for pid in under.pids())

    with pod(under, log) as second:
        assert eventually(lambda: state_of(under), lambda state: state == "Running", 60) == "Running"
        (tmp_path / "go-first").touch()
        under.until_steps({"first": "completed", "second": "running"})
        cancel(under.flow_run_id)
        second.send_signal(signal.SIGTERM)
        assert under.all_dead()
        second.wait(30)
    ran = under.join()
    assert ran.status == "stopped"
    assert ran.steps == {"first": "completed", "second": "stopped"}
    assert [len(ran.traces(step)) for step in ("first", "second")] == [1, 1]
