"""A work pool of the tests and the worker process on it, in a folder without the user's code."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.lab import STACK_CODE, eventually

BIN = Path(sys.executable).parent


def make_pool(name: str) -> None:
    """Create a process work pool."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


@dataclass
class Worker:
    """A process worker. A variable of ``environment`` that is None is taken away from it."""

    pool: str
    folder: Path
    environment: dict[str, str | None] = field(default_factory=dict)
    command: tuple[str, ...] = ("prefect", "worker", "start")
    cwd: Path | None = None
    """Where it is started, if not in its folder."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def start(self) -> Worker:
        """Start it, and wait until Prefect knows that it is online."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The flavour of the test stack's artifact store, which an installed integration would bring.
        ours = {"PYTHONPATH": str(STACK_CODE), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        environment = {**os.environ, **ours, **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / self.command[0]), *self.command[1:], "--pool", self.pool],
                cwd=self.cwd or self.folder,
                env={name: value for name, value in environment.items() if value is not None},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert eventually(self.online, bool, 60), self.log.read_text()[-3000:]
        return self

    def online(self) -> bool:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.objects import WorkerStatus

        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(self.pool)
        return any(worker.status == WorkerStatus.ONLINE for worker in workers)

    def stop(self) -> None:
        """End it by its pid; nothing if it isn't running."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
