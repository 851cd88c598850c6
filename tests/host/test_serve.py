"""The step host as a real program: steps take turns in it, and whatever becomes of one, the host goes on."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from bridge import names
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host import client, wire
from bridge.host.ends import decode
from bridge.runners.base import HostCall, Sandbox, SandboxRequest
from bridge.runners.local_host import talk
from bridge.runners.process import ProcessRunner
from bridge.warming.warm_again import attempts_in
from bridge.warming.warm_step import WarmHost, WarmStep
from tests.host.conftest import TIMEOUT, Job, Zen, with_a_thread

SOCKET = "host.sock"


@dataclass
class Host:
    """A running host, and how to ask it."""

    process: subprocess.Popen[str]
    folder: Path
    environment: dict[str, str]

    async def say(self, call: wire.Call, **more: str) -> AsyncIterator[wire.Frame]:
        frames = wire.FrameReader()

        async def end() -> SandboxEnd:
            code = await asyncio.to_thread(self.process.wait)
            return SandboxEnd(End.EXITED, code)

        async for data in talk(self.folder, SOCKET, call.line({**self.environment, **more}), end):
            for frame in frames.feed(data):
                yield frame

    async def run(self, call: wire.Call, **more: str) -> tuple[SandboxEnd, str]:
        """Run a step to its end; its end and its output."""
        output = b""
        async for frame in self.say(call, **more):
            if frame.kind == wire.END:
                return decode(frame.body), output.decode()
            assert frame.kind != wire.REFUSED, frame.body
            if frame.kind != wire.ACCEPTED:  # whose body says whether the attempt is over
                output += frame.body
        raise AssertionError("the host hung up")


@contextmanager
def serving(job: Job, *more: str, run: str | None = None, **environment: str) -> Iterator[Host]:
    variables = {**job.environment(), **environment}
    work = Path(variables[names.ENV_WORK_DIR])
    arguments = ("--snapshot-id", job.snapshot, "--run-id", run or job.run, "--socket", SOCKET, *more)
    process = job.start("serve", *arguments, **variables)
    try:
        yield Host(process, work, variables)
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=TIMEOUT)
        print(output)


OK = SandboxEnd(End.EXITED, 0)


@pytest.mark.slow  # tests/integration/test_warm.py has a chain of 20
async def test_a_chain_in_one_host(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path, length=3)
    with serving(job) as host:
        for step in ("one", "add_1", "add_2"):
            end, output = await host.run(wire.Call(step, step))
            assert end == OK, output
            assert ("value 1" in output) == (step == "one")
        # Asked again, it tells again, and nothing runs twice.
        assert (await host.run(wire.Call("one", "one")))[0] == OK
    assert job.statuses() == ("completed", {"one": ["completed"], "add_1": ["completed"], "add_2": ["completed"]})
    assert len(job.trace("one")) == 2
    assert host.process.returncode == 0
    assert not (host.folder / SOCKET).exists()


@pytest.mark.slow  # test_pipeline.py has the same ends under the same host
async def test_no_end_of_a_step_harms_the_host(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("ends", tmp_path, options={"execution_mode": "continue_on_failure"})
    with serving(job) as host:
        ends = {}
        for key, step in (
            ("raises", "raises_once"),
            ("killed", "killed_once"),
            ("exits", "exits_0"),
            ("again", "raises_once"),
            ("killed again", "killed_once"),
        ):
            ends[key], _ = await host.run(wire.Call(key, step))
    codes = {"raises": 1, "killed": 137, "exits": 0, "again": 0, "killed again": 0}
    assert ends == {key: SandboxEnd(End.EXITED, code) for key, code in codes.items()}
    assert job.statuses()[1]["raises_once"] == ["retried", "completed"]


@pytest.mark.slow  # tests/host/test_journal.py and the tests of crashes read on
async def test_a_caller_that_comes_back_reads_on_where_it_stopped(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("telling", tmp_path)
    with serving(job) as host:
        before, position = b"", 0
        async for frame in host.say(wire.Call("k", "hung")):
            before += frame.body
            position = max(position, frame.position)
            if b"it hangs now" in before:
                break
        async for frame in host.say(wire.Call("other", "hung")):
            assert (frame.kind, frame.body) == (wire.REFUSED, b"another step is running in this sandbox")
        (tmp_path / "go").touch()
        end, after = await host.run(wire.Call("k", "hung", position=position))
        assert (end, len(job.trace("hung"))) == (OK, 1)
        assert "it hangs now" not in after
        _, everything = await host.run(wire.Call("k", "hung"))
    assert everything.encode() == before + after.encode()


async def test_a_step_that_takes_too_long_is_killed_with_its_group_and_the_host_goes_on(
    zen: Zen, tmp_path: Path
) -> None:
    job = zen.submit("hanging", tmp_path)
    with serving(job) as host:
        end, _ = await host.run(wire.Call("k", "hung", timeout=8))
        assert (end.end, end.detail) == (End.TIMED_OUT, "after 8 s")
        assert not psutil.pid_exists(job.trace("hung")[0]["pid"])
        assert (await host.run(wire.Call("one", "one")))[0] == OK


@pytest.mark.slow  # test_pipeline.py kills one, the process runner's tests a supervisor
async def test_a_killed_host_takes_its_step_along(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("telling", tmp_path)
    with serving(job) as host:
        pid = await begun(job, host)
        step = psutil.Process(pid)
        host.process.kill()
        assert psutil.wait_procs([step], timeout=TIMEOUT)[1] == []


async def test_a_step_outlives_its_reader_for_a_moment_and_does_not_fail_of_it(zen: Zen, tmp_path: Path) -> None:
    """Between the host's death and the step's own: here whatever kills the step is stopped for as long as it takes."""
    job = zen.submit("telling_again", tmp_path)
    with serving(job) as host:
        step = psutil.Process(await begun(job, host))
        forks = step.parent()
        assert forks is not None
        forks.suspend()
        try:
            host.process.kill()
            host.process.wait(TIMEOUT)
            (tmp_path / "go").touch()
            await ended(step)
        finally:
            forks.resume()
    assert job.statuses()[1] == {"hung": ["completed"]}


async def ended(process: psutil.Process) -> None:
    """Wait until a process that nobody waits for has ended."""
    deadline = time.monotonic() + TIMEOUT
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)  # nobody tells of its end


@pytest.mark.slow  # the contract's check_terminate has it
async def test_sigterm_reaches_the_step_first(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("telling", tmp_path)
    with serving(job) as host:
        step = psutil.Process(await begun(job, host))
        host.process.terminate()
        assert psutil.wait_procs([step], timeout=TIMEOUT)[1] == []
        assert host.process.wait(TIMEOUT) == 0


async def begun(job: Job, host: Host) -> int:
    """Start the step that hangs, and return its process id."""
    async for frame in host.say(wire.Call("k", "hung")):
        if b"it hangs now" in frame.body:
            break
    return int(job.trace("hung")[0]["pid"])


@pytest.mark.slow  # each end of a step is among those below
async def test_a_step_that_kills_what_forks(zen: Zen, tmp_path: Path) -> None:
    """The step dies with it, and the next one is told that this host is of no use any more."""
    job = zen.submit("retried", tmp_path, how="kill parent")
    with serving(job) as host:
        assert (await host.run(wire.Call("k", "fail_first")))[0] == SandboxEnd(End.EXITED, 137)
        end, _ = await host.run(wire.Call("again", "fail_first"))
        assert end.end is End.NEVER_STARTED


@pytest.mark.slow
async def test_a_library_that_a_step_loads_is_in_no_other_process(zen: Zen, tmp_path: Path) -> None:
    """That of CUDA doesn't survive a fork: it must never come into what forks."""
    library = tmp_path / "libcuda.so.1"
    shutil.copy(psutil._psutil_linux.__file__, library)
    job = zen.submit("loading", tmp_path, path=str(library))
    with serving(job) as host:
        answers = [(await host.run(wire.Call(step, step)))[0] for step in ("loads", "one")]
        assert answers == [OK, OK]
        assert job.trace("loads")[0]["loaded"]
        serves = psutil.Process(host.process.pid)
        (forks,) = serves.children()
        for process in (serves, forks):
            assert not [mapped.path for mapped in process.memory_maps() if "libcuda" in mapped.path]


@pytest.mark.slow
async def test_what_forks_has_no_connections(served_zen: Zen, tmp_path: Path) -> None:
    """Two processes that share one mix up its answers."""
    job = served_zen.submit("chain", tmp_path, length=1)
    with serving(job) as host:
        assert (await host.run(wire.Call("one", "one")))[0] == OK
        (forks,) = psutil.Process(host.process.pid).children()
        assert forks.net_connections("inet") == []


def test_an_idle_host_ends_by_itself(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path)
    with serving(job, "--idle-timeout", "0.5") as host:
        assert host.process.wait(TIMEOUT) == 0


@pytest.mark.slow
async def test_a_step_may_take_longer_than_a_host_idles(zen: Zen, tmp_path: Path) -> None:
    """Nobody was there before it came: those seconds don't count."""
    job = zen.submit("fan_out", tmp_path, width=1, seconds=4.0)
    with serving(job, "--idle-timeout", "2") as host:
        end, output = await host.run(wire.Call("a", "wide_0"))
        assert end == OK, output
        assert host.process.wait(TIMEOUT) == 0


async def test_where_nothing_can_be_loaded_a_step_gets_a_process_of_its_own(zen: Zen, tmp_path: Path) -> None:
    """Also where its environment, being the image's, has a PYTHONPATH with another package of this name."""
    (tmp_path / "image" / "bridge").mkdir(parents=True)
    (tmp_path / "image" / "bridge" / "__init__.py").write_text("raise ImportError('of the image')")
    job = zen.submit("chain", tmp_path, length=1)
    with serving(job, run=str(uuid4())) as host:
        the_images = {"PYTHONPATH": f"{tmp_path / 'image'}:{Path(__file__).parent / 'stack'}"}
        assert (await host.run(wire.Call("one", "one"), **the_images))[0] == OK
        host.process.terminate()
        output, _ = host.process.communicate(timeout=TIMEOUT)
    assert output.count("Each step gets a process of its own") == 1


@pytest.mark.slow  # the reason is another one above, and what follows the same
async def test_where_forking_isn_t_safe_each_step_gets_a_process_of_its_own(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path, length=2)
    with serving(job, PYTHONPATH=with_a_thread(job, tmp_path)) as host:
        for step in ("one", "add_1"):
            assert (await host.run(wire.Call(step, step)))[0] == OK
        host.process.terminate()
        output, _ = host.process.communicate(timeout=TIMEOUT)
    (line,) = [line for line in output.splitlines() if "process of its own" in line]
    assert "threads are running: of the image" in line


@pytest.mark.slow  # tests/integration/test_crash.py has a whole flow
async def test_a_flow_that_comes_back_takes_up_the_step_that_runs(zen: Zen, tmp_path: Path) -> None:
    """Runners one after the other, as the processes of one flow run have them; the last comes after the step's end."""
    job = zen.submit("telling", tmp_path)
    name, idle = names.host_name(), names.host_name()
    tags = {"run": job.run}
    # Its working folder and its configuration of ZenML are each sandbox's own, as its runner says: of two programs that
    # share such a configuration one reads what the other is about to write.
    own = (names.ENV_WORK_DIR, "ZENML_CONFIG_PATH")
    environment = {name: value for name, value in job.environment().items() if name not in own}
    call = HostCall(names.host_socket(name), wire.Call("k", "hung"), environment)
    async with ProcessRunner(tmp_path / "state") as runner:
        for each in (name, idle):
            command = runner.host_command(
                "serve", "--snapshot-id", job.snapshot, "--run-id", job.run, "--socket", names.host_socket(each)
            )
            await runner.start(SandboxRequest(each, "app", command, environment=environment, tags=tags))
        box = await runner.find("app", name)
        assert box is not None
        async for data in runner.call(box, call):
            if b"it hangs now" in data:
                break
    async with ProcessRunner(tmp_path / "state") as runner:
        found = await attempts_in(runner, await runner.running(tags))
        assert {key: found.name for key, found in found.items()} == {"k": name}
        turn = WarmStep(runner, WarmHost(itself(found["k"]), call.socket), found["k"], call)
        (tmp_path / "go").touch()
        lines = [line.text async for line in turn.output()]
        assert await turn.wait() == OK, "\n".join(lines)
        assert turn.leaves_it_fit
        assert "it hangs now" in lines
        del turn, found
    async with ProcessRunner(tmp_path / "state") as runner:
        found = await attempts_in(runner, await runner.running(tags))
        turn = WarmStep(runner, WarmHost(itself(found["k"]), call.socket), found["k"], call)
        assert [line.text async for line in turn.output()] == lines
        assert await turn.wait() == OK
        for box in await runner.running(tags):
            await box.terminate()
    assert len(job.trace("hung")) == 1


async def itself(sandbox: Sandbox) -> Sandbox:
    return sandbox


@pytest.mark.slow
def test_the_client_asks_with_its_own_environment(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path, length=1)
    with serving(job) as host:
        asked = subprocess.run(
            [sys.executable, "-I", "-S", client.__file__, SOCKET, wire.Call("one", "one").text()],
            env={**host.environment, "USER_VARIABLE": "of the exec"},
            stdout=subprocess.PIPE,
            timeout=TIMEOUT,
            check=True,
        )
        frames = list(wire.FrameReader().feed(asked.stdout))
    assert frames[0].kind == wire.ACCEPTED
    assert decode(frames[-1].body) == OK
    assert job.trace("one")[0]["environment"]["USER_VARIABLE"] == "of the exec"


def begun_for(job: Job, step: str) -> str:
    """The step run that whoever calls a step operator has made."""
    arguments = {"run": job.run, "step": step}
    return job.zen.ask("call", module="step_run_calls", function="start", arguments=arguments)


@pytest.mark.parametrize("forks", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_a_step_operator_s_steps_take_turns(zen: Zen, tmp_path: Path, forks: bool) -> None:
    """Each has its step run, which whoever called the operator has made, and runs as ZenML has those run."""
    job, steps = zen.submit("fan_out", tmp_path, width=2, seconds=0.1), ("wide_0", "wide_1")
    with serving(job, "--each", "operated", **({} if forks else {"PYTHONPATH": with_a_thread(job, tmp_path)})) as host:
        for step in steps:
            end, output = await host.run(wire.Call(f"key of {step}", step, begun_for(job, step)))
            assert end == OK, output
            assert "goes on in a new process" not in output
    assert job.statuses()[1] == {step: ["completed"] for step in steps}
    assert len({trace["pid"] for step in steps for trace in job.trace(step)}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("forks", [True, False])
async def test_a_step_whose_caller_is_gone_ends_alone(zen: Zen, tmp_path: Path, forks: bool) -> None:
    """Its lease came with the call: it is none of its host's, nor of the next step's."""
    job = zen.submit("hanging", tmp_path)
    lease = {names.ENV_CALLER_TIMEOUT: "3"}
    with serving(job, "--each", "operated", **({} if forks else {"PYTHONPATH": with_a_thread(job, tmp_path)})) as host:
        end, output = await host.run(wire.Call("gone", "hung", begun_for(job, "hung")), **lease)
        assert (end.end, end.exit_code != 0) == (End.EXITED, True), output
        assert (await host.run(wire.Call("next", "one", begun_for(job, "one"))))[0] == OK
    steps = {step["name"]: step for step in job.read()["steps"]}
    assert {name: step["status"] for name, step in steps.items()} == {"hung": "failed", "one": "completed"}
    assert "Whoever called the step operator for this step is gone" in steps["hung"]["exception"]
