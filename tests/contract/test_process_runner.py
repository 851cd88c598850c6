"""What the process runner promises beyond the contract: no root, no leaks, and a life beyond the flow's."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

import bridge
from bridge import names
from bridge.errors import RunnerUnavailable, SandboxRefused
from bridge.flow_run.outcome import End
from bridge.plan import SandboxSpec
from bridge.runners import supervisor
from bridge.runners.base import SandboxRequest
from bridge.runners.contract import FOR_EVER, GRANDCHILD, Lab, lines, process_exists, show, texts, write
from bridge.runners.local_folder import LocalFolder
from bridge.runners.process import ProcessRunner, ProcessSandbox
from bridge.runners.spool import SpoolReader

ROOT = Path(bridge.__file__).parent.parent


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[ProcessRunner]:
    async with ProcessRunner(tmp_path / "state", grace=1) as entered:
        yield entered


def python(source: str, name: str = "own", timeout: int = 60, **environment: str) -> SandboxRequest:
    """A request for a sandbox that runs this source."""
    spec = SandboxSpec(timeout=timeout)
    return SandboxRequest(name, "process-tests", ("python", "-c", source), spec, environment)


async def run(runner: ProcessRunner, lab: Lab, request: SandboxRequest) -> list[str]:
    end, output = await lab.result(runner, request)
    assert end.exit_code == 0, f"{end}: {output}"
    return texts(output)


WITHOUT_POWERS = """
import asyncio, pathlib, re, sys
from bridge.runners.contract import Lab, check_exit_codes, check_host_command, check_own_folder, check_timeout
from bridge.runners.contract import check_no_process_outlives_terminate, run_check
from bridge.runners.process import ProcessRunner

async def main():
    async with ProcessRunner(pathlib.Path(sys.argv[1]), grace=1) as runner:
        for check in (check_exit_codes, check_host_command, check_own_folder, check_timeout,
                      check_no_process_outlives_terminate):
            await run_check(check, runner, Lab())

powers = re.search(r"^CapEff:\\s*(\\w+)$", pathlib.Path("/proc/self/status").read_text(), re.MULTILINE)[1]
asyncio.run(main())
print("without powers" if int(powers, 16) == 0 else f"CapEff {powers}")
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv, of Linux")
def test_it_needs_no_root(tmp_path: Path) -> None:
    """Who runs these tests may be root: then they do it once more without anything that root can do."""
    powers = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*powers, sys.executable, "-c", WITHOUT_POWERS, str(tmp_path / "state")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "without powers\n"), done.stderr


async def left(state: Path) -> list[str]:
    """What is in the folders of a state directory."""
    return sorted(path.name for part in ("sandboxes", "names") for path in (state / part).iterdir())


async def until_dead(state: Path, sandbox_id: str) -> None:
    while LocalFolder(state / "sandboxes" / sandbox_id).is_alive():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


# ---- what a program finds


async def test_credentials_stay_behind(tmp_path: Path, lab: Lab) -> None:
    secret = {"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "PREFECT__FLOW_RUN"}
    secret |= {"PREFECT_API_DATABASE_PASSWORD", "PREFECT_API_DATABASE_CONNECTION_URL"}
    kept = {"PREFECT_API_URL", "MY_VARIABLE"}
    # A program of its own: these variables must not reach the other tests.
    source = f"""
import asyncio
from pathlib import Path
from bridge.runners.contract import Lab, leave, show, texts
from bridge.runners.process import ProcessRunner
async def main():
    lab = Lab()
    for inherit in (True, False):
        async with ProcessRunner(Path({str(tmp_path)!r}), inherit) as runner:
            request = lab.request(*map(show, {sorted(secret | kept)!r}), show("HOME"), leave(0))
            _, output = await lab.result(runner, request)
            print(texts(output))
asyncio.run(main())
"""
    variables = {**os.environ, **dict.fromkeys(secret, "s3cret"), **dict.fromkeys(kept, "kept"), "HOME": "/home/me"}
    done = await lab.within(
        asyncio.create_subprocess_exec(
            sys.executable, "-c", source, env=variables, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
    )
    shown, _ = await lab.within(done.communicate())
    everything, needed = shown.decode().splitlines()
    assert everything == str([*("kept" if name in kept else "(unset)" for name in sorted(secret | kept)), "/home/me"])
    assert needed == str([*["(unset)"] * len(secret | kept), "/home/me"])


async def test_the_request_wins_over_what_is_inherited(runner: ProcessRunner, lab: Lab) -> None:
    request = lab.request(show("PATH"), show("ZENML_CONFIG_PATH"), environment={"PATH": "/mine"})
    path, config = await run(runner, lab, request)
    assert path == "/mine"
    assert config.startswith(str(runner.state_dir))


async def test_a_dynamic_pipelines_function_starts_other_programs(
    runner: ProcessRunner, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a step operator that it calls does: what the function's process says of itself isn't true of them."""
    monkeypatch.setenv(names.ENV_ORCHESTRATES, "snapshot")
    assert await run(runner, lab, lab.request(show(names.ENV_ORCHESTRATES))) == ["(unset)"]


async def test_own_configuration_and_folder(runner: ProcessRunner, lab: Lab) -> None:
    shown = [show("ZENML_CONFIG_PATH"), show(names.ENV_WORK_DIR), show(names.ENV_MODAL_SANDBOX_ID)]
    one, two = [await run(runner, lab, lab.request(*shown)) for _ in range(2)]
    assert not set(one) & set(two)


async def test_the_package_is_found_from_any_folder(runner: ProcessRunner, lab: Lab) -> None:
    request = python("import os, bridge; os.chdir('/'); print(bridge.__file__); print(os.environ['PYTHONPATH'])")
    file, path = await run(runner, lab, request)
    assert file == bridge.__file__
    assert path.split(os.pathsep)[-1] == str(ROOT)


async def test_relative_python_path_stays_right(tmp_path: Path, lab: Lab) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_own_module.py").write_text("")
    source = """
import asyncio
from pathlib import Path
from bridge.runners.base import SandboxRequest
from bridge.runners.process import ProcessRunner
async def main():
    async with ProcessRunner(Path("state")) as runner:
        sandbox = await runner.start(SandboxRequest("n", "a", ("python", "-c", "import my_own_module")))
        print((await sandbox.wait()).exit_code)
asyncio.run(main())
"""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(["mine", str(ROOT)])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, env=variables, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    shown, _ = await lab.within(process.communicate())
    assert shown == b"0\n"


# ---- a life beyond the flow's


FLOW = """
import asyncio, sys
from pathlib import Path
from bridge.plan import SandboxSpec
from bridge.runners.base import SandboxRequest
from bridge.runners.process import ProcessRunner
async def main():
    async with ProcessRunner(Path(sys.argv[1]), grace=1) as runner:
        command = ("python", "-c", sys.argv[2])
        sandbox = await runner.start(
            SandboxRequest("kept", "flow", command, SandboxSpec(timeout=int(sys.argv[3])), tags={"run": "1"}))
        print(sandbox.id, flush=True)
        await sandbox.wait()
asyncio.run(main())
"""


async def killed_flow(state: Path, source: str, lab: Lab, timeout: int = 60) -> str:
    """Start a sandbox from another process, kill that without a warning; return the sandbox's id."""
    flow = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOW, str(state), source, str(timeout), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert flow.stdout is not None
    sandbox_id = (await lab.within(flow.stdout.readline())).decode().strip()
    flow.kill()
    await lab.within(flow.wait())
    return sandbox_id


async def test_a_flow_that_comes_back_finds_its_sandbox(tmp_path: Path, lab: Lab) -> None:
    (tmp_path / "go").touch()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = f"print('before', flush=True); open({str(fifo)!r}).read(); print('after'); raise SystemExit(4)"
    sandbox_id = await killed_flow(tmp_path, source, lab)
    async with ProcessRunner(tmp_path) as runner:
        (by_tags,) = await runner.running({"run": "1"})
        found = await runner.find("flow", "kept")
        again = await runner.start(SandboxRequest("kept", "flow", ("python", "-c", "print('another')")))
        assert found is by_tags is again
        assert found.id == sandbox_id
        assert await found.poll() is None
        await asyncio.to_thread(fifo.write_text, "")
        assert str(await lab.within(found.wait())) == "exited with exit code 4"
        assert texts(await lab.output(found)) == ["before", "after"]
        del found, by_tags, again
    assert await left(tmp_path) == []


async def test_a_timeout_needs_no_flow(tmp_path: Path, lab: Lab) -> None:
    await killed_flow(tmp_path, "import threading; threading.Event().wait()", lab, timeout=3)
    async with ProcessRunner(tmp_path) as runner:
        found = await runner.find("flow", "kept")
        assert found is not None
        assert (await lab.within(found.wait())).end is End.TIMED_OUT


async def test_what_ended_without_its_flow_is_kept_until_somebody_has_asked(tmp_path: Path, lab: Lab) -> None:
    sandbox_id = await killed_flow(tmp_path, "print('last words'); raise SystemExit(4)", lab)
    await lab.within(until_dead(tmp_path, sandbox_id))
    async with ProcessRunner(tmp_path):
        pass  # another flow, whose business it isn't
    async with ProcessRunner(tmp_path) as runner:
        found = await runner.by_id(sandbox_id)
        assert found is not None
        assert str(await lab.within(found.wait())) == "exited with exit code 4"
        assert texts(await lab.output(found)) == ["last words"]
        del found
    assert await left(tmp_path) == []


async def test_what_nobody_asked_for_is_removed_after_a_day(tmp_path: Path, lab: Lab) -> None:
    sandbox_id = await killed_flow(tmp_path, "import threading; threading.Event().wait()", lab, timeout=1)
    await lab.within(until_dead(tmp_path, sandbox_id))
    async with ProcessRunner(tmp_path):
        assert sandbox_id in await left(tmp_path)
    os.utime(tmp_path / "sandboxes" / sandbox_id, (time.time() - 90_000,) * 2)
    async with ProcessRunner(tmp_path):
        pass
    assert await left(tmp_path) == []


async def test_leaving_a_runner_ends_nothing(tmp_path: Path, lab: Lab) -> None:
    async with ProcessRunner(tmp_path) as first:
        sandbox = await first.start(lab.request(write("up\n"), FOR_EVER, name="kept"))
        await lab.first(sandbox)
        waiting = asyncio.ensure_future(sandbox.wait())
        await asyncio.sleep(0)
    with pytest.raises(RunnerUnavailable, match="runner was left"):
        await lab.within(waiting)
    async with ProcessRunner(tmp_path, grace=1) as second:
        found = await second.find(lab.app, "kept")
        assert found is not None
        assert found.id == sandbox.id
        assert await lab.first(found) == ["up"]
        await lab.within(found.terminate())
        assert (await found.wait()).end is End.TERMINATED
    assert await left(tmp_path) == []


async def test_two_runners_at_once_make_one_sandbox(tmp_path: Path, lab: Lab) -> None:
    request = lab.request(FOR_EVER)
    async with ProcessRunner(tmp_path) as one, ProcessRunner(tmp_path) as two:
        found = await lab.within(asyncio.gather(*(runner.start(request) for runner in (one, two) * 4)))
        assert len({sandbox.id for sandbox in found}) == 1
        await lab.within(found[0].terminate())
        ends = await lab.within(asyncio.gather(*(sandbox.wait() for sandbox in found)))
        assert {end.end for end in ends} == {End.TERMINATED}


async def test_another_runner_does_not_take_away_what_this_one_reads(tmp_path: Path, lab: Lab) -> None:
    async with ProcessRunner(tmp_path) as mine:
        sandbox = await mine.start(lab.request(write("kept\n")))
        await lab.within(sandbox.wait())
        async with ProcessRunner(tmp_path):
            pass
        assert texts(await lab.output(sandbox)) == ["kept"]


async def test_ctrl_c_does_not_reach_it(runner: ProcessRunner, lab: Lab) -> None:
    (session,) = await run(runner, lab, python("import os; print(os.getsid(0))"))
    assert int(session) != os.getsid(0)


# ---- its processes


async def test_a_process_that_left_the_group_is_killed_too(runner: ProcessRunner, lab: Lab) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux lets a supervisor adopt orphans")
    daemon = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait()'],"
        " start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid)\n"
    )
    (pid,) = await run(runner, lab, python(daemon))
    assert not process_exists(int(pid))


async def test_a_killed_supervisor_takes_its_sandbox_along(runner: ProcessRunner, lab: Lab) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child of its parent's death")
    sandbox = await runner.start(lab.request(GRANDCHILD, FOR_EVER))
    (pids,) = await lab.first(sandbox)
    main, grandchild = map(int, pids.split())
    watched = [psutil.Process(main), psutil.Process(grandchild)]
    psutil.Process(main).parent().kill()
    end = await lab.within(sandbox.wait())
    assert end.end is End.LOST
    assert "supervisor was killed" in end.detail
    _, alive = await asyncio.to_thread(psutil.wait_procs, watched, lab.patience)
    assert not alive


async def test_no_sandbox_is_left_without_anybody_to_enforce_its_timeout(tmp_path: Path, lab: Lab) -> None:
    """Flow and supervisor are both killed, and no runner comes by."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child of its parent's death")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = f"import threading; open({str(fifo)!r}, 'w').close(); threading.Event().wait()"
    sandbox_id = await killed_flow(tmp_path, source, lab)
    await asyncio.to_thread(fifo.read_text)  # the program is up
    (supervising,) = [
        each
        for each in psutil.process_iter(["cmdline"])
        if any(sandbox_id in part for part in each.info["cmdline"] or ())
    ]
    family = [supervising, *supervising.children()]
    assert len(family) == 2
    supervising.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 20)
    for process in alive:
        process.kill()
    assert not alive


async def test_sigterm_gives_a_program_time(runner: ProcessRunner, lab: Lab) -> None:
    source = (
        "import signal, sys, threading\n"
        "def end(*_):\n    print('cleaned up', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "threading.Event().wait()\n"
    )
    sandbox = await runner.start(python(source))
    await lab.first(sandbox)
    await lab.within(sandbox.terminate())
    assert str(await sandbox.wait()) == "terminated"
    assert texts(await lab.output(sandbox)) == ["up", "cleaned up"]


async def test_a_timeout_stays_one_when_it_is_terminated_as_well(tmp_path: Path, lab: Lab) -> None:
    source = (
        "import signal, threading\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "while True: threading.Event().wait(0.01)\n"
    )
    async with ProcessRunner(tmp_path, grace=2) as runner:
        sandbox = await runner.start(python(source, timeout=2))
        assert await lab.first(sandbox) == ["asked"]
        await lab.within(sandbox.terminate())
        assert (await sandbox.wait()).end is End.TIMED_OUT


async def test_nothing_leaks(tmp_path: Path, lab: Lab) -> None:
    def counts() -> tuple[int, int]:
        gc.collect()
        this = psutil.Process()
        return this.num_fds(), len(this.children())

    async with ProcessRunner(tmp_path, grace=1) as runner:
        await run(runner, lab, lab.request(lines(10)))  # threads and the like come with the first
        before = counts()
        for _ in range(5):
            await asyncio.gather(*(run(runner, lab, lab.request(lines(10))) for _ in range(4)))
        # What an earlier test of this process had left may have gone meanwhile.
        assert all(now <= then for now, then in zip(counts(), before, strict=True)), (before, counts())
        assert [name for name in await left(tmp_path) if name.startswith("sb-")] == []
    assert await left(tmp_path) == []


async def test_working_folders_go_with_their_sandbox(runner: ProcessRunner, lab: Lab) -> None:
    sandbox = await runner.start(python("import os; open('file', 'w').write('x'); print(os.getcwd())"))
    await lab.within(sandbox.wait())
    (folder,) = texts(await lab.output(sandbox))
    with pytest.raises(FileNotFoundError):
        os.stat(folder)


# ---- its output


async def test_output_is_bounded_on_disk(runner: ProcessRunner, lab: Lab) -> None:
    """Of 160 MiB the start and the end are there, and a line says what isn't."""
    source = "import sys\nfor i in range(160): sys.stdout.write(('%08d ' % i + 'x' * 1014 + '\\n') * 1024)"
    sandbox = await runner.start(python(source))
    assert (await lab.within(sandbox.wait())).exit_code == 0
    size = sum(path.stat().st_size for path in sandbox.folder.path.glob("output-*"))
    assert size <= supervisor.SEGMENTS * supervisor.SEGMENT_BYTES
    output = await lab.output(sandbox)
    (note,) = texts(output, "stderr")
    missing = re.fullmatch(r"\[(\d+) MiB of output are left out here\]", note)
    assert missing
    assert 160 <= int(missing[1]) + size / 2**20 <= 162  # what tells the streams apart takes a little, too
    written = texts(output)
    assert written[0].startswith("00000000")
    assert written[-1].startswith("00000159")
    numbers = [int(line[:8]) for line in written if line[:8].isdigit()]
    assert numbers == sorted(numbers)


async def test_a_full_disk_costs_the_output_and_not_the_step(tmp_path: Path, lab: Lab) -> None:
    # A limit on the size of files stands in for a full disk: writing fails with an error in both cases.
    source = f"""
import asyncio, resource, signal
from pathlib import Path
from bridge.runners.base import SandboxRequest
from bridge.runners.process import ProcessRunner
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
async def main():
    async with ProcessRunner(Path({str(tmp_path)!r})) as runner:
        code = "import sys; sys.stdout.write('x' * 99 + chr(10)); sys.stdout.write('y' * 655360)"
        command = ("python", "-c", code)
        sandbox = await runner.start(SandboxRequest("n", "a", command))
        print(await sandbox.wait())
        texts = [line.text async for line in sandbox.output()]
        print(*texts)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    shown, _ = await lab.within(process.communicate())
    end, first = shown.decode().splitlines()
    assert end.startswith("exited with exit code 0: ")
    lost = re.search(r"(\d+) bytes of its output are lost: .* No space left on device", end)
    kept = re.fullmatch(r"x{99} .*the line has (\d+) characters\]", first)
    assert lost
    assert kept
    assert int(lost[1]) > 0
    assert int(lost[1]) + int(kept[1]) == 655360


def test_half_a_frame_is_read_when_it_is_whole(tmp_path: Path) -> None:
    frame = supervisor.FRAME.pack(1, 0.0, 6) + b"whole\n"
    spool = tmp_path / "output-00000000"
    with SpoolReader(tmp_path) as reader:
        assert reader.read() == (False, [])
        for end in range(len(frame)):
            spool.write_bytes(frame[:end])
            assert reader.read() == (False, [])
        spool.write_bytes(frame * 2)
        progress, output = reader.read()
        assert progress
        assert texts(output) == ["whole", "whole"]


async def test_what_is_in_the_pipe_at_the_end_is_not_lost(runner: ProcessRunner, lab: Lab) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has pipes of a size to be chosen")
    # F_SETPIPE_SZ: the program can be gone before its supervisor has read more than a small part.
    source = "import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); os.write(1, (b'x' * 1023 + b'\\n') * 1024); os._exit(0)"
    for turn in range(5):
        assert len(await run(runner, lab, python(source, f"turn {turn}"))) == 1024


async def test_output_that_is_gone_is_an_error(runner: ProcessRunner, lab: Lab) -> None:
    sandbox = await runner.start(lab.request(write("x\n")))
    await lab.within(sandbox.wait())
    sandbox.close()
    with pytest.raises(RunnerUnavailable):
        await lab.output(sandbox)


# ---- odds and ends


async def test_an_empty_command_is_refused(runner: ProcessRunner) -> None:
    with pytest.raises(SandboxRefused, match="no command"):
        await runner.start(SandboxRequest("n", "a", ()))


async def test_an_impossible_environment_is_refused_and_leaves_nothing(runner: ProcessRunner, lab: Lab) -> None:
    with pytest.raises(SandboxRefused, match="can't be started"):
        await runner.start(lab.request(FOR_EVER, environment={"A": "nul \0"}))
    assert not await runner.running({})


def test_it_works_on_a_loop_that_is_not_the_main_threads(tmp_path: Path) -> None:
    async def main() -> int | None:
        async with ProcessRunner(tmp_path) as runner:
            sandbox: ProcessSandbox = await runner.start(python("raise SystemExit(9)"))
            return (await sandbox.wait()).exit_code

    async def in_thread() -> int | None:
        return await asyncio.to_thread(asyncio.run, main())

    assert asyncio.run(in_thread()) == 9


async def test_out_of_memory_is_told_apart(tmp_path: Path, lab: Lab, limited_group: Callable[[int], None]) -> None:
    source = f"""
import asyncio, sys
from pathlib import Path
from bridge.runners.base import SandboxRequest
from bridge.runners.process import ProcessRunner
async def main():
    sys.stdin.read()
    async with ProcessRunner(Path({str(tmp_path)!r})) as runner:
        for code in ("x = bytearray(1 << 30)", "import os; os.kill(os.getpid(), 9)"):
            sandbox = await runner.start(SandboxRequest("n", "a", ("python", "-c", code)))
            print((await sandbox.wait()).end.value)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    limited_group(process.pid)
    shown, _ = await lab.within(process.communicate(b""))
    assert shown.decode().splitlines() == ["out of memory", "exited"]


@pytest.fixture
def limited_group(tmp_path: Path) -> Callable[[int], None]:
    """A control group of 200 MiB, where this user may make one: a function that puts a process into it."""
    group = Path(f"/sys/fs/cgroup/memory{own_memory_group()}/modal-prefect-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
    except OSError as error:
        pytest.skip(f"needs a memory control group (version 1) of its own: {error}")

    def enter(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid))

    yield enter
    group.rmdir()


def own_memory_group() -> str:
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    return next((path for _, controllers, path in groups if "memory" in controllers.split(",")), "/")
