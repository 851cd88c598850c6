"""What happens in sandboxes that aren't to be measured: 1,000 steps that really imported ZenML would need 230 GB.

The sandboxes are real processes of the loopback, but their `python` is `stub.sh`. What a step would tell ZenML's
server, in two requests, this crew tells it for all of them; then it lets the process end.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import httpx

from tests.loopback import LoopbackModal, SandboxRecord

STUB = Path(__file__).with_name("stub.sh")
WARM_UP = "warm_up"
"""A step that waits for no other."""
LOOK_SECONDS = 0.1
CONNECTIONS = 16


@dataclass
class Crew:
    """Plays the steps of every sandbox that comes up. Use it as a context manager.

    With ``meet``, steps go on once so many of them run at one moment, and not before.
    """

    modal: LoopbackModal
    zenml: str
    meet: int | None = None
    played: int = 0
    most_running: int = 0
    failure: BaseException | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _seen: set[str] = field(default_factory=set)

    def __enter__(self) -> Crew:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        try:
            asyncio.run(self._play_all())
        except BaseException as error:
            self.failure = error

    async def _play_all(self) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with httpx.AsyncClient(base_url=f"{self.zenml}/api/v1", limits=limits, timeout=600) as client:
            login = await client.post("/login", data={"username": "default", "password": ""})
            client.headers["Authorization"] = f"Bearer {login.raise_for_status().json()['access_token']}"
            projects = (await client.get("/projects")).raise_for_status().json()
            project = projects["items"][0]["id"]
            met = asyncio.Event()
            running = 0
            plays: set[asyncio.Task[None]] = set()

            async def play(box: SandboxRecord) -> None:
                nonlocal running
                step_run = await self._begin(client, project, box)
                running += WARM_UP not in box.argv
                self.most_running = max(self.most_running, running)
                if self.meet is None or running >= self.meet:
                    met.set()
                if WARM_UP not in box.argv:
                    await met.wait()
                await self._end(client, step_run)
                running -= WARM_UP not in box.argv
                self.played += 1
                self.modal.kill(box.id, signal.SIGTERM)

            while not self._over.is_set():
                for box in await asyncio.to_thread(self.modal.sandboxes):
                    if box.pid is not None and box.status == "running" and box.id not in self._seen:
                        self._seen.add(box.id)
                        plays.add(asyncio.create_task(play(box)))
                for done in [task for task in plays if task.done()]:
                    plays.discard(done)
                    done.result()
                await asyncio.sleep(LOOK_SECONDS)  # the loopback tells nobody of a new sandbox

    async def _begin(self, client: httpx.AsyncClient, project: str, box: SandboxRecord) -> str:
        body = {
            "name": box.argv[box.argv.index("--step") + 1],
            "pipeline_run_id": box.tags["zenml_run_id"],
            "project": project,
            "status": "running",
            "start_time": datetime.now(timezone.utc).isoformat(),
        }
        made: str = (await client.post("/steps", json=body)).raise_for_status().json()["id"]
        return made

    async def _end(self, client: httpx.AsyncClient, step_run: str) -> None:
        body = {"status": "completed", "end_time": datetime.now(timezone.utc).isoformat()}
        (await client.put(f"/steps/{step_run}", json=body)).raise_for_status()
