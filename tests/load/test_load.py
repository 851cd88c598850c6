"""Many steps at once, and many runs one after the other, on `runner="modal"`: what they cost the user's process.

Real: both servers, each in a process of its own; the user's process with ZenML's client, Prefect's engine and the Modal
SDK; the loopback Modal and a process for each sandbox. Not real: what happens in the sandboxes, see crew.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import servers
from tests.bench.rig import light_zenml_server
from tests.integration.lab import STACK_CODE
from tests.load.crew import STUB, Crew, turns
from tests.load.user import IMAGE, WARM_UPS
from tests.loopback import LoopbackImage, LoopbackModal

STEPS = int(os.environ.get("LOAD_STEPS", "1000"))
RUNS = int(os.environ.get("LOAD_RUNS", "200"))
SETTLED = 20
"""After so many runs whatever is made once has been made."""


@dataclass(frozen=True)
class Scene:
    """The servers, and a folder for the user's process."""

    folder: Path
    prefect: servers.Server
    zenml: servers.Server
    modal: LoopbackModal

    def crew(self, meet: int | None = None) -> Crew:
        """Who plays the steps."""
        return Crew(self.modal, self.zenml.url, self.folder / "turns", meet=meet)

    def user(self, runs: int, steps: int, how: str, seconds: float) -> list[dict[str, Any]]:
        """Let a user's process run to its end; return its figures, a mapping for each run."""
        environment = {
            **servers.clean_environment(),
            **servers.zenml_client_environment(self.folder / "zenml-client", self.zenml),
            **self.modal.env,
            "PREFECT_API_URL": f"{self.prefect.url}/api",
            "PREFECT_HOME": str(self.folder / "prefect-client"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": f"{STACK_CODE}{os.pathsep}{servers.ROOT}",
        }
        log = self.folder / "user.log"
        with log.open("w") as output:
            ran = subprocess.run(
                [sys.executable, "-m", "tests.load.user", str(runs), str(steps), how],
                env=environment,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                timeout=seconds,
                check=False,
            )
        assert ran.returncode == 0, log.read_text()[-3000:]
        return [json.loads(line[8:]) for line in ran.stdout.splitlines() if line.startswith("figures ")]

    def statuses(self) -> set[str]:
        """The statuses of all ZenML runs, and the state types of all Prefect flow runs."""
        with servers.zenml_api(self.zenml) as zenml:
            runs = zenml.get("/runs", params={"size": 1000}).raise_for_status().json()["items"]
        flow_runs = (
            httpx.post(f"{self.prefect.url}/api/flow_runs/filter", json={}, timeout=120).raise_for_status().json()
        )
        return {run["body"]["status"] for run in runs} | {run["state_type"] for run in flow_runs}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    image = LoopbackImage(python=STUB, env=turns(tmp_path / "turns"))
    zenml, prefect = light_zenml_server(tmp_path), servers.prefect_server(tmp_path)
    with LoopbackModal({IMAGE: image}) as modal:
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(servers.Server.start, (zenml, prefect)))
            yield Scene(tmp_path, prefect, zenml, modal)
        finally:
            for server in (zenml, prefect):
                server.stop()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["cold", "warm"])
def test_steps_at_once(scene: Scene, how: str) -> None:
    """Each step waits until all of them run. What all of them add to the process is bounded."""
    with scene.crew(meet=STEPS) as crew:
        (figures,) = scene.user(1, STEPS, how, 3000)
    print(json.dumps(figures))
    stats = scene.modal.stats()
    assert (crew.played, crew.most_running) == (STEPS + WARM_UPS, STEPS)
    assert (stats.created, stats.most_at_once, stats.alive) == (STEPS + WARM_UPS, STEPS, 0)
    assert scene.statuses() == {"completed", "COMPLETED"}
    before, peak = figures["before"], figures["peak"]
    assert peak["threads"] - before["threads"] <= 32, figures
    assert peak["rss"] - before["rss"] <= 0.4 * STEPS + 50, figures
    assert peak["fds"] - before["fds"] <= 1.2 * STEPS + 64, "a socket for each sandbox whose output is read"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", ["cold", "warm"])
def test_runs_one_after_the_other(scene: Scene, how: str) -> None:
    """From the 20th run to the last not one thread or descriptor more, and at most 5 MB."""
    with scene.crew() as crew:
        figures = scene.user(RUNS, 2, how, 7000)
    assert crew.played == 2 * RUNS + WARM_UPS
    assert scene.modal.stats().created == WARM_UPS + (RUNS if how == "warm" else 2 * RUNS)
    assert scene.statuses() == {"completed", "COMPLETED"}
    after = [each["after"] for each in figures]
    print(json.dumps(after[:: max(1, RUNS // 20)]))
    settled, last = after[SETTLED - 1], after[-1]
    assert last["threads"] <= settled["threads"], after
    assert last["fds"] <= settled["fds"], after
    assert last["rss"] - settled["rss"] <= 5.0, after
