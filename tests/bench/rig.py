"""Starts the real servers, runs a graph through them in fresh processes, and reads what both sides say of it."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import servers
from tests.bench.graphs import Graph


@dataclass(frozen=True)
class Rig:
    """Both servers, and the environment of a process that uses them."""

    folder: Path
    prefect: servers.Server
    zenml: servers.Server

    @property
    def servers(self) -> tuple[servers.Server, servers.Server]:
        """Both."""
        return self.zenml, self.prefect

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is a client of both."""
        return {
            **servers.clean_environment(),
            **servers.zenml_client_environment(self.folder / "zenml-client", self.zenml),
            "PREFECT_API_URL": f"{self.prefect.url}/api",
            "PREFECT_HOME": str(self.folder / "prefect-client"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }

    def process(self, module: str, wanted: Mapping[str, object], environment: Mapping[str, str] | None = None) -> Any:
        """Run a module of this package and return what it answers; :mod:`tests.bench.answers` is its end."""
        log, answer = self.folder / f"{module}.log", self.folder / f"{module}.json"
        with log.open("ab") as output:
            ran = subprocess.run(
                [sys.executable, "-m", f"tests.bench.{module}", str(answer)],
                cwd=servers.ROOT,
                env={**(environment or self.environment)},
                input=json.dumps(wanted),
                stdout=output,
                stderr=output,
                text=True,
                check=False,
            )
        if ran.returncode:
            raise RuntimeError(f"{module} ended with {ran.returncode}:\n{log.read_text()[-3000:]}")
        return json.loads(answer.read_text())

    def snapshot(self, name: str, graph: Graph, limit: int | None) -> str:
        """Store a pipeline with that graph in ZenML."""
        snapshot_id: str = self.process("prepare", {"name": name, "graph": graph, "limit": limit})
        return snapshot_id

    def run(self, snapshot_id: str, seconds: float, meet: int | None = None, *, once: bool = False) -> dict[str, Any]:
        """Run a snapshot whose steps take ``seconds`` each; return :class:`tests.bench.measured_flow.Figures`.

        With ``meet``, that many steps wait for each other before they go on: so many run at once. With ``once``,
        sandboxes report to ZenML at their end alone.
        """
        before = {server.name: processor_seconds(server) for server in self.servers}
        wanted = {"snapshot_id": snapshot_id, "seconds": seconds, "meet": meet, "once": once}
        found: dict[str, Any] = self.process("measured_flow", wanted)
        found["servers"] = {server.name: processor_seconds(server) - before[server.name] for server in self.servers}
        return found

    def use_workers(self, workers: int) -> None:
        """Restart ZenML's server with that many processes: one alone is bound by its interpreter's lock.

        Not from the start: one process has to migrate the database, and a worker can't import our flavour.
        """
        self.zenml.stop()
        self.zenml.argv += ["--workers", str(workers)]
        self.zenml.start()

    def states(self, figures: Mapping[str, Any], steps: int) -> tuple[str, Counter[str]]:
        """What both sides say of a run: the status of ZenML's, and the states of Prefect's task runs."""
        wanted = {"run_id": figures["run_id"], "flow_run_id": figures["flow_run_id"], "steps": steps}
        status, states = self.process("both_sides", wanted)
        return status, Counter(states)


def processor_seconds(server: servers.Server) -> float:
    """The processor time that a server has used so far, its workers' included."""
    assert server.process is not None
    parent = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def light_zenml_server(folder: Path) -> servers.Server:
    """A ZenML server that is as little of a bottleneck as its own options allow.

    Requests aren't looked up among those already answered: that is several writes of SQLite for each.
    """
    server = servers.zenml_server(folder)
    server.environment = {
        **server.environment,
        "ZENML_SERVER_REQUEST_DEDUPLICATION": "false",
        "ZENML_SERVER_JWT_SECRET_KEY": secrets.token_hex(32),  # else each worker makes up its own
    }
    return server


@contextlib.contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """Start both servers, with their data in ``folder``, and end them at the end."""
    ours = Rig(folder, servers.prefect_server(folder), light_zenml_server(folder))
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(servers.Server.start, ours.servers))
        yield ours
    finally:
        for server in ours.servers:
            server.stop()
