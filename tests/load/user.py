"""A user's process that calls a pipeline again and again, and says after each time what it uses: a line of JSON each.

``python -m tests.load.user RUNS STEPS [warm]``; with ``warm`` steps share sandboxes where they can.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from zenml import pipeline, step
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.enums import StackComponentType

from tests.load.crew import WARM_UP

IMAGE = "registry.example.com/load:1"
STACK = "load"
WARM_UPS = 2
"""So many that they share warm sandboxes."""
LOOK_SECONDS = 0.25


@dataclass
class Use:
    """What this process has at a moment; ``rss`` in MB, ``cpu`` in seconds since its start."""

    rss: float
    threads: int
    fds: int
    cpu: float

    @classmethod
    def now(cls) -> Use:
        process = psutil.Process()
        cpu = process.cpu_times()
        return cls(process.memory_info().rss / 2**20, process.num_threads(), process.num_fds(), cpu.user + cpu.system)


class Peak:
    """The most of each that was seen while it was entered."""

    def __enter__(self) -> Peak:
        self.use = Use.now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            now = Use.now()
            before = self.use
            self.use = Use(*(max(pair) for pair in zip(vars(before).values(), vars(now).values(), strict=True)))


@step(enable_cache=False)
def work() -> None:
    """Never called: see crew.py."""


def make_stack() -> None:
    client = Client()
    client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
    client.create_flavor("shared_store.SharedStoreFlavor", StackComponentType.ARTIFACT_STORE)
    add = client.create_stack_component
    Path("artifacts").mkdir()
    path = f"shared://{os.path.abspath('artifacts').lstrip('/')}"
    add("shared", "shared-folder", StackComponentType.ARTIFACT_STORE, {"path": path})
    add("registry", "default", StackComponentType.CONTAINER_REGISTRY, {"uri": "registry.example.com"})
    add("builder", "local", StackComponentType.IMAGE_BUILDER, {})
    add(STACK, "modal-prefect", StackComponentType.ORCHESTRATOR, {"runner": "modal", "create_rate": 1000.0})
    components: dict[StackComponentType, str] = {
        StackComponentType.ORCHESTRATOR: STACK,
        StackComponentType.ARTIFACT_STORE: "shared",
        StackComponentType.CONTAINER_REGISTRY: "registry",
        StackComponentType.IMAGE_BUILDER: "builder",
    }
    client.create_stack(STACK, components=components)
    client.activate_stack(STACK)


def main(runs: int, steps: int, warm: bool) -> None:
    make_stack()

    @pipeline(name="load", enable_cache=False)
    def load() -> None:
        for number in range(steps):
            # Of many runs each has a sandbox, in which its steps take turns; in one run all of them are there at once.
            work(id=f"step_{number}", after=[f"step_{number - 1}"] if warm and runs > 1 and number else None)

    @pipeline(name="warm_up", enable_cache=False)
    def warm_up() -> None:
        for number in range(WARM_UPS):
            work(id=f"{WARM_UP}_{number}")

    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    ours = {"execution_mode": "per_step", "warm": warm, "stream_logs": True}
    settings = {"docker": docker, "orchestrator": ours}
    warm_up.with_options(settings=settings)()  # so that what is imported and made once isn't counted
    prepared = load.with_options(settings=settings)
    for number in range(runs):
        before = Use.now()
        with Peak() as peak:
            prepared()
        gc.collect()
        told = {"run": number, "before": asdict(before), "peak": asdict(peak.use), "after": asdict(Use.now())}
        sys.stdout.write("figures " + json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), "warm" in sys.argv[3:])
