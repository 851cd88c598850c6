"""A step in a warm sandbox whose host can't be reached, and what its sandbox's end means for it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bridge import names
from bridge.errors import RunnerUnavailable
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host import wire
from bridge.host.wire import Call
from bridge.runners.base import HostCall, Sandbox, SandboxRequest
from bridge.runners.modal import ModalRunner
from bridge.runners.modal_objects import PACKAGE_PATH
from bridge.warming.warm_step import WarmHost, WarmStep
from tests.contract.modal_lab import SPEC, eventually
from tests.loopback import LoopbackModal

NO_SOCKET = "x" * 200
"""Longer than a socket's name may be: the client in the sandbox gives up at once."""


async def test_it_counts_as_lost_once_its_sandbox_is_dead(cloud: LoopbackModal) -> None:
    asked = SandboxRequest(name="host", app="zenml-lab", command=("sleep", "600"), spec=SPEC)
    async with ModalRunner(create_rate=100) as runner:
        host = WarmHost(runner.start(asked), NO_SOCKET)
        sandbox = await host.made
        step = WarmStep(runner, host, sandbox, HostCall(NO_SOCKET, Call("key", "step")), outage=1.0)
        end = asyncio.ensure_future(step.wait())
        await eventually(lambda: bool(cloud.stats().calls.get("TaskExecStart")))
        cloud.unavailable(5)  # so that it can't be ended at once
        assert (await end).end is End.LOST
        assert cloud.sandbox(sandbox.id).status == "terminated"
        assert [line async for line in step.output()] == []


async def test_the_time_that_others_have_spent_in_it_is_not_its_own(cloud: LoopbackModal) -> None:
    """A sandbox whose hours are over: the step that began it had them all, one that came later hadn't."""
    asked = SandboxRequest(name="host", app="zenml-lab", command=("sleep", "600"), spec=replace(SPEC, timeout=2))
    async with ModalRunner(create_rate=100) as runner:
        host = WarmHost(runner.start(asked), NO_SOCKET)
        sandbox = await host.made
        first, later, limited = (
            WarmStep(runner, host, sandbox, HostCall(NO_SOCKET, Call(key, "step", timeout=limit)), outage=60.0)
            for key, limit in (("first", None), ("later", None), ("limited", 600.0))
        )
        ends = await asyncio.gather(*(step.wait() for step in (first, later, limited)))
    assert [end.end for end in ends] == [End.TIMED_OUT, End.LOST, End.TIMED_OUT]
    assert "24 hours" in ends[1].detail


HOST = """
import asyncio, os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from bridge.host import wire
from bridge.host.serve import listen
from bridge.host.turns import Turns

class Shell:
    async def start(self, attempt, streams):
        self.process = await asyncio.create_subprocess_shell(attempt.step, stdout=streams.stdout)
        return self
    async def wait(self):
        code = await self.process.wait()
        if os.path.exists("unkillable"):
            await asyncio.Event().wait()
        return code
    def signal(self, number):
        if self.process.returncode is None:
            self.process.send_signal(number)
    async def close(self):
        pass

def break_down():
    print("so it ends", file=sys.stderr, flush=True)
    os._exit(5)

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, break_down)
    turns = Turns("snapshot", Shell(), os.path.join(*wire.socket_path("steps-of-" + {socket!r})), 600)
    await asyncio.start_unix_server(turns.answer, sock=listen({socket!r}))
    await turns.over()

asyncio.run(main())
"""
"""The step host, whose steps are shell commands: this sandbox has no ZenML to talk to. It breaks down at
SIGUSR1, and never hears of the end of a step that has made a file `unkillable`."""


@pytest.fixture
def own_socket() -> Iterator[str]:
    """The name of a socket whose host has no working folder; what that leaves behind goes."""
    socket = names.host_socket(names.host_name())
    yield socket
    for left in Path(wire.FOLDER).glob(f"*{socket}"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


async def test_a_step_s_temporary_folder_is_its_own(cloud: LoopbackModal, tmp_path: Path, own_socket: str) -> None:
    """Its variables are those of whoever asks its host for it; and it may empty the folder that the host has too."""
    asked = SandboxRequest(
        name="host",
        app="zenml-lab",
        command=("python", "-c", HOST.format(socket=own_socket), PACKAGE_PATH),
        spec=SPEC,
        environment={names.ENV_WORK_DIR: ""},  # a sandbox on Modal has none; the loopback's stands for a container
    )
    commands = ('rm -rf "${TMPDIR:?}"/*; echo emptied', "echo and on")
    async with ModalRunner(create_rate=100) as runner:
        host = WarmHost(runner.start(asked), own_socket)
        sandbox = await host.made
        for command, said in zip(commands, ("emptied", "and on"), strict=True):
            call = HostCall(own_socket, Call(command, command), {"TMPDIR": str(tmp_path)})
            step = WarmStep(runner, host, sandbox, call, outage=1.0)
            assert await asyncio.wait_for(step.wait(), timeout=30) == SandboxEnd(End.EXITED, 0)
            assert [line.text async for line in step.output()] == [said]
        await sandbox.terminate()


async def test_what_nobody_has_read_is_read_before_a_step_is_ended(cloud: LoopbackModal) -> None:
    """It is in the sandbox alone, and goes with it: not even a step that has ended there before may take it along."""
    socket, lines = names.host_socket("host"), 300_000
    script = HOST.format(socket=socket)
    asked = SandboxRequest(name="host", app="zenml-lab", command=("python", "-c", script, PACKAGE_PATH), spec=SPEC)
    before, call = (HostCall(socket, Call(step, step)) for step in ("true", f"seq {lines}; sleep 600"))
    async with ModalRunner(create_rate=100) as runner:
        sandbox = await runner.start(asked)
        async for _ in runner.call(sandbox, before):
            pass
        said = b""
        async for data in runner.call(sandbox, call):
            said = said[-100:] + data
            if str(lines).encode() in said:
                break  # a flow that ends here, and whose successor has read nothing
        host = WarmHost(itself(sandbox), socket)
        over = WarmStep(runner, host, sandbox, before, goes_on=True)
        await over.terminate()
        assert await over.wait() == SandboxEnd(End.EXITED, 0)
        step = WarmStep(runner, host, sandbox, call, goes_on=True)
        ending = asyncio.ensure_future(step.terminate())
        read = [line.text async for line in step.output()]
        await ending
        assert (len(read), read[-1]) == (lines, str(lines))
        assert cloud.sandbox(sandbox.id).status == "terminated"


async def test_a_host_that_breaks_down_loses_its_step(cloud: LoopbackModal) -> None:
    """An exit code of the host's own is none of the step's: nothing that the step did explains it."""
    socket = names.host_socket("host")
    script = HOST.format(socket=socket)
    asked = SandboxRequest(name="host", app="zenml-lab", command=("python", "-c", script, PACKAGE_PATH), spec=SPEC)
    async with ModalRunner(create_rate=100) as runner:
        host = WarmHost(runner.start(asked), socket)
        sandbox = await host.made
        call = HostCall(socket, Call("key", "echo it runs; kill -USR1 $PPID; sleep 600"))
        step = WarmStep(runner, host, sandbox, call)
        assert [line.text async for line in step.output()] == ["it runs"]
        end = await step.wait()
        assert end == SandboxEnd(End.LOST, detail="its step host ended with exit code 5: so it ends")
        assert not step.leaves_it_fit
        assert (cloud.sandbox(sandbox.id).exit_code, host.failed) == (5, True)


async def test_a_step_that_not_even_its_host_can_end_costs_its_timeout_and_little_more(cloud: LoopbackModal) -> None:
    """Its process hangs in the kernel, with a network's file system or a GPU: the sandbox goes."""
    socket = names.host_socket("host")
    script = HOST.format(socket=socket)
    asked = SandboxRequest(name="host", app="zenml-lab", command=("python", "-c", script, PACKAGE_PATH), spec=SPEC)
    async with ModalRunner(create_rate=100) as runner:
        host = WarmHost(runner.start(asked), socket)
        sandbox = await host.made
        call = HostCall(socket, Call("key", "touch unkillable; echo it hangs; exec sleep 600", timeout=1.0))
        step = WarmStep(runner, host, sandbox, call, overdue=5.0)
        assert [line.text async for line in step.output()] == ["it hangs"]
        end = await step.wait()
        assert end.end is End.TIMED_OUT, end
        assert not step.leaves_it_fit
        assert cloud.sandbox(sandbox.id).status == "terminated"


BOXES = 5


async def test_what_has_ended_keeps_no_connection(cloud: LoopbackModal, backend: str) -> None:
    """A connection to its worker is two descriptors, for each warm sandbox of a run, while the flow still has it."""
    this = psutil.Process()
    socket = names.host_socket("host")
    script = HOST.format(socket=socket)
    kept: list[Sandbox] = []

    async def one(runner: ModalRunner, number: int) -> None:
        name = f"host-{number}"
        asked = SandboxRequest(name=name, app="zenml-lab", command=("python", "-c", script, PACKAGE_PATH), spec=SPEC)
        host = WarmHost(runner.start(asked), socket)
        sandbox = await host.made
        kept.append(sandbox)
        for key in ("one", "two"):
            step = WarmStep(runner, host, sandbox, HostCall(socket, Call(key, f"echo {key}")))
            assert [line.text async for line in step.output()] == [key]
            assert await step.wait() == SandboxEnd(End.EXITED, 0)
        await host.end()
        assert await sandbox.poll() == await sandbox.wait() == SandboxEnd(End.TERMINATED)
        await sandbox.terminate()
        with pytest.raises(RunnerUnavailable, match="has ended"):
            async for _ in runner.call(sandbox, HostCall(socket, Call("late", "true"))):
                pass

    async with ModalRunner(create_rate=100) as runner:
        await one(runner, 0)
        before = this.num_fds()
        for number in range(1, BOXES):
            await one(runner, number)
        # The loopback's sides of them are in this process too. SDK 1.6.4 gives back by itself what idled for 30 s.
        await asyncio.wait_for(eventually(lambda: this.num_fds() <= before), timeout=10)
    assert len(kept) == BOXES


async def test_what_is_still_being_read_is_read_to_its_end(cloud: LoopbackModal, backend: str) -> None:
    """Its sandbox has ended, and the flow knows: what came out of it before is on its way yet."""
    socket, lines = names.host_socket("host"), 300_000
    script = HOST.format(socket=socket)
    asked = SandboxRequest(name="host", app="zenml-lab", command=("python", "-c", script, PACKAGE_PATH), spec=SPEC)
    async with ModalRunner(create_rate=100) as runner:
        sandbox = await runner.start(asked)
        talk = runner.call(sandbox, HostCall(socket, Call("key", f"seq {lines}")))
        read = [await anext(talk)]
        await eventually(lambda: not any("client.py" in " ".join(each.info["cmdline"] or ()) for each in children()))
        await sandbox.terminate()
        read += [data async for data in talk]
    assert f"\n{lines}\n" in b"".join(read).decode(errors="replace")


def children() -> list[psutil.Process]:
    """The processes below this one, the loopback's sandboxes among them."""
    pids = {child.pid for child in psutil.Process().children(recursive=True)}
    return [process for process in psutil.process_iter(["cmdline"]) if process.pid in pids]


async def itself(sandbox: Sandbox) -> Sandbox:
    return sandbox
