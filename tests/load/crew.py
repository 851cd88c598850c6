"""What happens in sandboxes that aren't to be measured: 1,000 steps that really imported ZenML would need 230 GB.

The sandboxes are real processes of the loopback, but their `python` is `stub.sh`. What a step would tell ZenML's
server, in two requests, this crew tells it for all of them; then it lets the process end, or its turn in a warm one.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import httpx

from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host import wire
from bridge.host.ends import encode
from tests.loopback import LoopbackModal, SandboxRecord

STUB = Path(__file__).with_name("stub.sh")
WARM_UP = "warm_up"
"""How the names of the steps begin that are of no account: they wait for no other."""
LOOK_SECONDS = 0.1
CONNECTIONS = 16
SAYS = b"running\n"


def turns(folder: Path) -> dict[str, str]:
    """Put there what the stub says as a step host's client; return the variables of its image."""
    folder.mkdir()
    said, length = time.time(), wire.HEAD.size + len(SAYS)
    accepted = wire.HEAD.pack(wire.ACCEPTED, said, 0, 0)
    end = encode(SandboxEnd(End.EXITED, 0))
    (folder / "begun").write_bytes(accepted + wire.HEAD.pack(wire.STDOUT, said, length, len(SAYS)) + SAYS)
    (folder / "ended").write_bytes(wire.HEAD.pack(wire.END, said, length + wire.HEAD.size + len(end), len(end)) + end)
    return {"TURNS": str(folder)}


@dataclass(frozen=True)
class Part:
    """A step that waits in a sandbox to be played; ``over`` lets it end there."""

    step: str
    run_id: str
    over: Callable[[], None]

    @property
    def counts(self) -> bool:
        """Whether it is of account."""
        return not self.step.startswith(WARM_UP)


@dataclass
class Crew:
    """Plays the steps of every sandbox that comes up. Use it as a context manager.

    With ``meet``, steps go on once so many of them run at one moment, and not before. ``turns`` is the folder in which
    the stub tells of the steps in warm sandboxes.
    """

    modal: LoopbackModal
    zenml: str
    turns: Path
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

            async def play(part: Part) -> None:
                nonlocal running
                step_run = await self._begin(client, project, part)
                running += part.counts
                self.most_running = max(self.most_running, running)
                if self.meet is None or running >= self.meet:
                    met.set()
                if part.counts:
                    await met.wait()
                await self._end(client, step_run)
                running -= part.counts
                self.played += 1
                await asyncio.to_thread(part.over)

            while not self._over.is_set():
                for part in await asyncio.to_thread(lambda: list(self._waiting())):
                    plays.add(asyncio.create_task(play(part)))
                for done in [task for task in plays if task.done()]:
                    plays.discard(done)
                    done.result()
                await asyncio.sleep(LOOK_SECONDS)  # the loopback tells nobody of a new sandbox

    def _waiting(self) -> Iterator[Part]:
        """The steps that nobody has played yet."""
        boxes = self.modal.sandboxes()
        for box in boxes:
            if box.pid is not None and box.status == "running" and "--step" in box.argv and box.id not in self._seen:
                self._seen.add(box.id)
                step = box.argv[box.argv.index("--step") + 1]
                yield Part(step, box.tags["zenml_run_id"], lambda box=box: self._kill(box))  # type: ignore[misc]
        run_ids = {box.id: box.tags["zenml_run_id"] for box in boxes}
        for pipe in self.turns.glob("sb-*[0-9]"):
            if pipe.is_fifo() and pipe.name not in self._seen:
                self._seen.add(pipe.name)
                call = wire.Call.of_text(pipe.with_name(f"{pipe.name}.call").read_text())
                run_id = run_ids[pipe.name.rpartition("-")[0]]
                yield Part(call.step, run_id, lambda pipe=pipe: pipe.write_text("\n"))  # type: ignore[misc]

    def _kill(self, box: SandboxRecord) -> None:
        self.modal.kill(box.id, signal.SIGTERM)

    async def _begin(self, client: httpx.AsyncClient, project: str, part: Part) -> str:
        body = {
            "name": part.step,
            "pipeline_run_id": part.run_id,
            "project": project,
            "status": "running",
            "start_time": datetime.now(timezone.utc).isoformat(),
        }
        made: str = (await client.post("/steps", json=body)).raise_for_status().json()["id"]
        return made

    async def _end(self, client: httpx.AsyncClient, step_run: str) -> None:
        body = {"status": "completed", "end_time": datetime.now(timezone.utc).isoformat()}
        (await client.put(f"/steps/{step_run}", json=body)).raise_for_status()
