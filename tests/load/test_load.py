"""Many steps at once, and many runs one after the other, on `runner="modal"`: what they cost the user's process.

Real: both servers, each in a process of its own; the user's process with ZenML's client, Prefect's engine and the Modal
SDK; the loopback Modal and a process for each sandbox. Not real: what happens in the sandboxes, see crew.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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
WINDOW = 20
"""Most runs that are looked at together. What Python collects late goes up and down like a saw: two moments tell of two
teeth, but the least of many runs is what is really kept."""
MOST_GROWTH = {"threads": 0, "fds": 0, "rss": 5.0}
"""Of threads and descriptors, and MB."""


def growth(after: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By how much the least of the last runs is more than the least of those that follow the first ``SETTLED``."""
    settled = after[SETTLED:]
    window = min(WINDOW, len(settled) // 2)
    first, last = settled[:window], settled[-window:]
    return {what: min(use[what] for use in last) - min(use[what] for use in first) for what in MOST_GROWTH}


def grown(after: Sequence[Mapping[str, float]]) -> set[str]:
    """What has become more than it may."""
    return {what for what, more in growth(after).items() if more > MOST_GROWTH[what]}


def saw(number: int, **each_run: float) -> dict[str, float]:
    """What a process uses after a run, whose garbage is collected in every 9th one; and what it keeps of each run."""
    tooth = number % 9
    flat = {"threads": 8.0, "fds": 21.0 + 2 * (tooth % 7), "rss": 308.0 + 2.5 * tooth}
    return {what: use + int(number * each_run.get(what, 0)) for what, use in flat.items()}


@pytest.mark.parametrize(
    ("each_run", "found"),
    [
        ({}, set()),
        ({"threads": 1 / 50}, {"threads"}),
        ({"fds": 1 / 50}, {"fds"}),
        ({"rss": 0.05}, {"rss"}),
        ({"rss": 0.5, "fds": 2}, {"rss", "fds"}),
    ],
    ids=["nothing", "a thread in 50 runs", "a descriptor in 50 runs", "50 kB a run", "a sandbox's connection a run"],
)
@pytest.mark.parametrize("runs", [200, 203, 207])
def test_a_leak_is_seen_through_a_saw(each_run: dict[str, float], found: set[str], runs: int) -> None:
    """Wherever its last tooth ends."""
    assert grown([saw(number, **each_run) for number in range(runs)]) == found


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
    """From the 20th run to the last not one thread or descriptor more, and at most 5 MB: see ``growth``."""
    with scene.crew() as crew:
        figures = scene.user(RUNS, 2, how, 7000)
    assert crew.played == 2 * RUNS + WARM_UPS
    assert scene.modal.stats().created == WARM_UPS + (RUNS if how == "warm" else 2 * RUNS)
    assert scene.statuses() == {"completed", "COMPLETED"}
    after = [each["after"] for each in figures]
    print(json.dumps(after[:: max(1, RUNS // 20)]))
    assert grown(after) == set(), (growth(after), after)
