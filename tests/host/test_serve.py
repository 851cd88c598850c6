"""The step host as a real program: steps take turns in it, and whatever becomes of one, the host goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bridge import names
from bridge.host import client, wire
from bridge.host.ends import decode
from bridge.outcome import End, SandboxEnd
from bridge.runners.local_host import talk
from tests.host.conftest import TIMEOUT, Job, Zen

SOCKET = "host.sock"


@dataclass
class Host:
    """A running host, and how to ask it."""

    process: subprocess.Popen[str]
    folder: Path
    environment: dict[str, str]

    async def say(self, call: wire.Call, **more: str) -> AsyncIterator[wire.Frame]:
        frames = wire.FrameReader()

        async def never() -> SandboxEnd:
            await asyncio.Event().wait()
            raise AssertionError

        async for data in talk(self.folder, SOCKET, call.line({**self.environment, **more}), never):
            for frame in frames.feed(data):
                yield frame

    async def run(self, call: wire.Call, **more: str) -> tuple[SandboxEnd, str]:
        """Run a step to its end; its end and its output."""
        output = b""
        async for frame in self.say(call, **more):
            if frame.kind == wire.END:
                return decode(frame.body), output.decode()
            assert frame.kind != wire.REFUSED, frame.body
            output += frame.body
        raise AssertionError("the host hung up")


@contextmanager
def serving(job: Job, **environment: str | None) -> Iterator[Host]:
    variables = {**job.environment(), **environment}
    work = Path(str(variables[names.ENV_WORK_DIR]))
    process = job.start("serve", "--snapshot-id", job.snapshot, "--run-id", job.run, "--socket", SOCKET, **variables)
    try:
        yield Host(process, work, {name: value for name, value in variables.items() if value is not None})
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=TIMEOUT)
        print(output)


async def test_a_chain_in_one_host(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path, length=3)
    with serving(job) as host:
        first, output = await host.run(wire.Call("a", "one"))
        assert first == SandboxEnd(End.EXITED, 0), output
        assert "value 1" in output
        took = []
        for step in ("add_1", "add_2"):
            began = time.monotonic()
            end, output = await host.run(wire.Call(step, step))
            took.append(time.monotonic() - began)
            assert end == SandboxEnd(End.EXITED, 0), output
        print(took)
        # Asked again, it tells again, and nothing runs twice.
        assert (await host.run(wire.Call("a", "one")))[0] == first
    assert job.statuses() == ("completed", {"one": ["completed"], "add_1": ["completed"], "add_2": ["completed"]})
    assert len(job.trace("one")) == 2
    assert host.process.returncode == 0
