"""Programs in sandboxes whose flow is gone, or isn't: real ones, with a lease of a few seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest

from bridge import names
from bridge.host import client as host_client
from bridge.host import wire
from tests.host.conftest import Job, Zen, client
from tests.servers import zenml_client_environment, zenml_server

LEASE = 6
LONG_LEASE = 16
TIMEOUT = 90
SOCKET = "host.sock"
KINDS = ("pipeline", "step", "serve")


def start(job: Job, kind: str, orphan_timeout: float = LEASE) -> subprocess.Popen[str]:
    variables = {names.ENV_ORPHAN_TIMEOUT: str(orphan_timeout), names.ENV_RUN_ID: job.run}
    if kind == "pipeline":
        return job.start_pipeline(**variables)
    if kind == "step":
        return job.start("step", "--snapshot-id", job.snapshot, "--step", "hung", **variables)
    variables |= job.environment()
    arguments = ("--snapshot-id", job.snapshot, "--run-id", job.run, "--socket", SOCKET)
    process = job.start("serve", *arguments, **variables)
    call = wire.Call("a", "hung").text()
    subprocess.Popen([sys.executable, "-I", "-S", host_client.__file__, SOCKET, call], env=variables)
    return process


def pid(job: Job) -> int:
    """The process of the step that hangs."""
    found: int = job.trace("hung")[0]["pid"]
    return found


def renew(jobs: Iterable[Job], until: Callable[[], bool]) -> None:
    """Be the flow of some runs."""
    deadline = time.monotonic() + TIMEOUT
    while not until():
        assert time.monotonic() < deadline, [job.trace("hung") for job in jobs]
        for job in jobs:
            job.zen.ask("call", module="lease_calls", function="renew", arguments={"run": job.run})
        time.sleep(0.2)


def test_without_its_flow_a_sandbox_ends_and_says_so(zen: Zen, tmp_path: Path) -> None:
    jobs = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        jobs[kind] = zen.submit("held", tmp_path / kind)
    processes = {kind: start(job, kind) for kind, job in jobs.items()}
    renew(jobs.values(), lambda: all(job.trace("hung") for job in jobs.values()))
    outputs = {kind: process.communicate(timeout=TIMEOUT)[0] for kind, process in processes.items()}
    for kind, job in jobs.items():
        why = f"It gave no sign of life for {LEASE} s, its `orphan_timeout`"
        assert "this sandbox ends" in outputs[kind]
        assert not psutil.pid_exists(pid(job)), outputs[kind]
        status, steps = job.statuses()
        assert (status, steps["hung"]) == ("failed", ["failed"]), outputs[kind]
        assert "later" not in steps
        reasons = {step["name"]: step["exception"] for step in job.read()["steps"] if step["status"] == "failed"}
        assert why in reasons["hung"]
        assert why in zen.ask("call", module="lease_calls", function="reason", arguments={"run": job.run})
        if kind == "pipeline":  # the others have one step alone
            assert steps["again"][-1] in ("failed", "stopped")
    assert processes["pipeline"].returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_as_long_as_its_flow_renews_the_lease_a_sandbox_lives(zen: Zen, tmp_path: Path, kind: str) -> None:
    job = zen.submit("held", tmp_path)
    process = start(job, kind)
    renew([job], lambda: bool(job.trace("hung")))
    renew([job], time_after(2 * LEASE))
    assert process.poll() is None
    (tmp_path / "go").touch()
    renew([job], lambda: bool([line for line in job.trace("hung") if line["what"] == "end"]))
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_while_zenml_is_away_nobody_ends(tmp_path: Path) -> None:
    """Nor right after: the flow has the time that was left to it before. Then it ends all the same, as it is alone."""
    server = zenml_server(tmp_path / "served").start()
    variables = zenml_client_environment(tmp_path / "client", server)
    (tmp_path / "home").mkdir()
    serving = client(tmp_path / "home", {name: value for name, value in variables.items() if "STORE" in name})
    try:
        zen = next(serving)
        job = zen.submit("held", tmp_path)
        process = start(job, "step", LONG_LEASE)
        renew([job], lambda: bool(job.trace("hung")))
        server.stop()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5 * LONG_LEASE)
        server.start()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(LONG_LEASE / 2)  # nobody renews it, and it has asked by now
        output = process.communicate(timeout=TIMEOUT)[0]
        assert f"Nobody gave a sign of life for {LONG_LEASE} s" in output
        assert job.statuses()[1]["hung"] == ["failed"]
    finally:
        next(serving, None)
        server.stop()


def time_after(seconds: float) -> Callable[[], bool]:
    """Tells whether so many seconds have passed."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until
