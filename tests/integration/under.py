"""A run that goes on while a test does something to it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from prefect.states import Cancelling
from zenml.client import Client

from tests import servers
from tests.integration.lab import IMAGE, PROJECT, STACK_CODE, Lab, Ran, eventually

ALIVE_SECONDS = 10.0


class Under:
    """A run that goes on in a thread, or elsewhere, while the test does something to it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.ran = Ran(folder)
        self._known = {run.id for run in Client().list_pipeline_runs(size=10, sort_by="desc:created").items}
        self._thread: threading.Thread | None = None

    def start(
        self,
        pipeline: Any,
        place: str,
        settings: dict[str, Any],
        options: Any = None,
        stack: str | None = None,
        **arguments: Any,
    ) -> Under:
        """Call the pipeline in a thread, on a stack of that place."""

        def work() -> None:
            self.ran = self.lab.run(pipeline, chosen, settings=settings, into=self.folder, options=options, **arguments)

        chosen = stack or self.lab.stack(place)
        self._thread = threading.Thread(target=work, daemon=True)  # a test that fails must not wait for it
        self._thread.start()
        return self

    @contextmanager
    def script(
        self, pipeline: str, place: str, settings: dict[str, Any], output: int | None = None, **configuration: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Call a pipeline (``module.name``) in a process of its own, which is killed if it is there at the end.

        Its output is in ``script.log``, or goes to this descriptor.
        """
        module, _, name = pipeline.partition(".")
        script = self.folder / "script.py"
        script.write_text(
            f"import {module}\n"
            "from zenml.config import DockerSettings\n"
            "from zenml.utils import source_utils\n"
            f"source_utils.set_custom_source_root({str(PROJECT)!r})\n"  # not the script's folder
            f"docker = DockerSettings(parent_image={IMAGE!r}, skip_build=True)\n"
            f"settings = {{'docker': docker, 'orchestrator': {settings!r}}}\n"
            f"{module}.{name}.with_options(settings=settings)({str(self.folder)!r})\n"
        )
        self.lab.activate(self.lab.stack(place, **configuration))
        environment = {**os.environ, "PYTHONPATH": f"{STACK_CODE}:{PROJECT}:{servers.ROOT}"}
        with (self.folder / "script.log").open("wb") as log:
            argv = [sys.executable, str(script)]
            to = log if output is None else output
            process = subprocess.Popen(argv, cwd=PROJECT, env=environment, stdout=to, stderr=to)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @cached_property
    def run_id(self) -> UUID:
        def read() -> list[Any]:
            runs = Client().list_pipeline_runs(size=10, sort_by="desc:created").items
            return [run for run in runs if run.id not in self._known and run.orchestrator_run_id]

        found = eventually(read, lambda found: found or self.ran.error, 120)
        assert found, f"no run came of it: {self.ran.error!r}"
        run_id: UUID = found[0].id
        return run_id

    @property
    def flow_run_id(self) -> UUID:
        return UUID(Client().get_pipeline_run(self.run_id).orchestrator_run_id)

    def until_steps(self, expected: dict[str, str], seconds: float = 180) -> Under:
        """Wait until ZenML says this of the steps and their own code is under way."""

        def read() -> dict[str, str]:
            steps = Client().get_pipeline_run(self.run_id).steps
            return {name: step.status.value for name, step in steps.items()}

        found = eventually(read, lambda found: found == expected, seconds)
        assert found == expected
        running = [name for name, status in expected.items() if status == "running"]
        assert eventually(lambda: all(self.ran.traces(name) for name in running), bool, 30)
        return self

    def pids(self) -> set[int]:
        """The processes in which this run's steps ran."""
        return {trace["pid"] for path in self.folder.glob("*.jsonl") for trace in self.ran.traces(path.stem)}

    def until_logged(self, text: str, seconds: float = 60, level: int = 0) -> Under:
        """Wait until a line with this text, of this level at least, is among the first in the logs of the flow run."""
        chosen = LogFilter(flow_run_id={"any_": [self.flow_run_id]}, level={"ge_": level})  # type: ignore[arg-type]
        with get_client(sync_client=True) as client:

            def read() -> list[str]:
                return [log.message for log in client.read_logs(chosen, limit=200) if text in log.message]

            assert eventually(read, bool, seconds)
        return self

    def all_dead(self, seconds: float = ALIVE_SECONDS) -> bool:
        """Whether nothing of the run's sandboxes is alive, at the latest after ``seconds``."""

        def alive() -> list[Any]:
            return [box for box in self.lab.sandboxes_of(self.run_id) if box.status == "running"] + [
                pid for pid in self.pids() if living(pid)
            ]

        return eventually(alive, lambda found: not found, seconds) == []

    def join(self, seconds: float = 60) -> Ran:
        """Wait for the end of the call and read both sides."""
        if self._thread is not None:
            self._thread.join(seconds)
            assert not self._thread.is_alive()
        eventually(lambda: Client().get_pipeline_run(self.run_id), lambda run: run.status.is_finished, 30)
        error = self.ran.error
        self.ran = self.lab.read(Ran(self.folder), self.run_id)
        self.ran.error = error
        return self.ran


def living(pid: int) -> bool:
    """Whether a process is there, and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def cancel(flow_run_id: UUID) -> None:
    """What the cancel button of Prefect's UI does."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, Cancelling())
