"""The sandboxes' half of a benchmark: a process that tells ZenML's server what sandboxes would tell it.

In a real run these requests come from other machines. Here they come from one other process, so that they cost the
flow's process nothing but a line on a socket; they are the two that ZenML's own client makes for a step without
artifacts, with its headers. The process shares the machine's cores with the flow and both servers all the same.

The protocol: one JSON object a line, ``{"id", "step"}`` to begin a step or ``{"id", "step_run"}`` to end it, or
``{"id", "step", "began"}`` to report one that began then and is done; the answer is ``{"id", "step_run"}`` or
``{"id", "error"}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import count
from uuid import uuid4

import aiohttp

CONNECTIONS = 32
"""Requests to ZenML's server at one time; of more, the server's own threads would be the queue."""


@dataclass
class _Server:
    """Answers one flow process."""

    session: aiohttp.ClientSession
    project: str
    run: str
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS))

    async def request(self, method: str, path: str, body: Mapping[str, object]) -> str:
        headers = {"X-Request-ID": uuid4().hex[:8], "Idempotency-Key": str(uuid4())}
        async with self.slots, self.session.request(method, f"/api/v1{path}", json=body, headers=headers) as response:
            if response.status != 200:
                raise RuntimeError(f"{method} {path}: {response.status} {(await response.text())[:300]}")
            found: str = (await response.json())["id"]
            return found

    async def answer(self, asked: Mapping[str, str], out: asyncio.StreamWriter) -> None:
        now = datetime.now(timezone.utc).isoformat()
        try:
            if "step" in asked:
                body = {
                    "name": asked["step"],
                    "pipeline_run_id": self.run,
                    "project": self.project,
                    "status": "running",
                    "start_time": now,
                }
                if "began" in asked:
                    body |= {"status": "completed", "start_time": asked["began"], "end_time": now}
                step_run = await self.request("POST", "/steps", body)
            else:
                body = {"status": "completed", "end_time": now}
                step_run = await self.request("PUT", f"/steps/{asked['step_run']}", body)
            reply = {"id": asked["id"], "step_run": step_run}
        except Exception as error:
            reply = {"id": asked["id"], "error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply).encode() + b"\n")


async def _serve(socket: str, url: str, project: str, run: str) -> None:
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
        async with session.post("/api/v1/login", data={"username": "default", "password": ""}) as login:
            login.raise_for_status()
            session.headers["Authorization"] = f"Bearer {(await login.json())['access_token']}"
        server = _Server(session, project, run)
        gone = asyncio.Event()

        async def connected(lines: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
            at_work = set()
            async for line in lines:
                task = asyncio.ensure_future(server.answer(json.loads(line), out))
                at_work.add(task)
                task.add_done_callback(at_work.discard)
            out.close()
            gone.set()

        async with await asyncio.start_unix_server(connected, socket):
            print("ready", flush=True)
            await gone.wait()


class Outside:
    """The flow's end of the socket. Use it as ``async with`` on the flow's loop."""

    def __init__(self, url: str, project: str, run: str, socket: str) -> None:
        self._argv = [sys.executable, "-m", "tests.bench.outside", socket, url, project, run]
        self._socket = socket
        self._answers: dict[str, asyncio.Future[str]] = {}
        self._ids = count()

    async def __aenter__(self) -> Outside:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdout=pipe, env=os.environ)
        assert self._process.stdout is not None
        if await self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("The process that plays the sandboxes' half didn't start")
        self._lines, self._out = await asyncio.open_unix_connection(self._socket)
        self._reader = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._out.close()
        await self._process.wait()
        await self._reader

    async def begin(self, step: str) -> str:
        """Create the step's RUNNING step run and return its id."""
        return await self._ask({"step": step})

    async def end(self, step_run: str) -> None:
        """Publish a step run COMPLETED."""
        await self._ask({"step_run": step_run})

    async def report(self, step: str, began: datetime) -> None:
        """Create the step's step run, which began then, as COMPLETED."""
        await self._ask({"step": step, "began": began.isoformat()})

    async def _ask(self, what: dict[str, str]) -> str:
        number = str(next(self._ids))
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._out.write(json.dumps({"id": number, **what}).encode() + b"\n")
        return await answer

    async def _read(self) -> None:
        async for line in self._lines:
            reply = json.loads(line)
            answer = self._answers.pop(reply["id"])
            if answer.cancelled():
                continue
            if "error" in reply:
                answer.set_exception(RuntimeError(reply["error"]))
            else:
                answer.set_result(reply["step_run"])


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
