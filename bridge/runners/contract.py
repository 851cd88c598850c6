"""The contract of :mod:`bridge.runners.base`, as checks that any runner can be put through.

Each check in :data:`CHECKS` takes an entered runner and a :class:`Lab`, and raises ``AssertionError``. What a
runner can't tell apart stands in :data:`KNOWN_GAPS` with its reason; :func:`run_check` runs a check and makes
sure that a gap is still one. So a third-party runner is tested like this::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_contract(check):
        async with MyRunner() as runner:
            await run_check(check, runner, Lab())

Programs are data, a tuple of :class:`Do`. Runners with a Python run them through :data:`INTERPRETER`; the
scripted runner performs them with :func:`perform`.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import bridge
from bridge import names
from bridge.errors import RunnerUnavailable
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host import wire
from bridge.host.wire import Call
from bridge.plan import SandboxSpec
from bridge.runners.base import CallsHosts, HostCall, Runner, Sandbox, SandboxRequest
from bridge.watching.output import MAX_LINE_LENGTH, OutputLine

if TYPE_CHECKING:
    from bridge.runners.scripted import Stage

Result = TypeVar("Result")

INTERPRETER = """\
import json, os, signal, subprocess, sys, threading
def write(stream, data):
    out = getattr(sys, stream).buffer
    out.write(data)
    out.flush()
for name, value in json.loads(sys.argv[1]):
    if name in ("stdout", "stderr"):
        write(name, bytes.fromhex(value))
    elif name == "lines":
        for number in range(value):
            sys.stdout.write("%d\\n" % number)
        sys.stdout.flush()
    elif name == "environment":
        write("stdout", (os.environ.get(value, "(unset)") + "\\n").encode())
    elif name == "folder":
        write("stdout", (os.getcwd() + "\\n").encode())
    elif name == "arguments":
        write("stdout", (json.dumps(sys.orig_argv + sys.argv) + "\\n").encode())
    elif name == "grandchild":
        child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
        write("stdout", ("%d %d\\n" % (os.getpid(), child.pid)).encode())
    elif name == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif name == "for_ever":
        threading.Event().wait()
    elif name == "raise_signal":
        os.kill(os.getpid(), value)
    elif name == "exit":
        sys.exit(value)
"""
"""What ``python -c`` is given to perform a program, which is its argument as JSON. Python 3.10."""


HOST = f"""\
import json, os, socket, struct, sys, time
time.sleep(float(sys.argv[2]))
os.chdir(os.environ.get({names.ENV_WORK_DIR!r}) or {wire.FOLDER!r})
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    connection, _ = listener.accept()
    asked = json.loads(connection.makefile("rb").readline())
    named = {{name: asked["environment"].get(name) for name in ("PLAIN", "SECRET")}}
    body = json.dumps({{"step": asked["call"]["step"], **named}}).encode()
    head = struct.pack({wire.HEAD.format!r}, {wire.STDOUT}, time.time(), {wire.HEAD.size} + len(body), len(body))
    try:
        connection.sendall(head + body)
    except OSError:
        pass
    connection.close()
"""
"""A stand-in for the step host, for ``python -c``: the name of its socket, and the seconds until it listens.

Whoever asks is told for which step, and with which variables. Python 3.10.
"""


@dataclass(frozen=True, slots=True)
class Do:
    """One thing that a program does, by its name in :data:`INTERPRETER`."""

    name: str
    value: str | int = 0


FOR_EVER = Do("for_ever")
DEAF = Do("deaf")
"""Ignore SIGTERM."""
GRANDCHILD = Do("grandchild")
"""Start a process that never ends, and print both process ids on one line."""
FOLDER = Do("folder")
"""Print the working folder."""
ARGUMENTS = Do("arguments")
"""Print what any user of the machine could read in a list of processes."""


def write(data: str | bytes, stream: str = "stdout") -> Do:
    """Write exactly this, and flush."""
    return Do(stream, (data.encode() if isinstance(data, str) else data).hex())


def lines(number: int) -> Do:
    """Write that many lines: 0, 1, 2 ..."""
    return Do("lines", number)


def show(variable: str) -> Do:
    """Print an environment variable, or ``(unset)``."""
    return Do("environment", variable)


def leave(code: int) -> Do:
    """Exit with ``code``."""
    return Do("exit", code)


def raise_signal(number: int) -> Do:
    """Die of a signal."""
    return Do("raise_signal", number)


def process_exists(pid: int) -> bool:
    """Whether this machine has a process of that id that isn't just waiting to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return sys.platform != "linux"


@dataclass(frozen=True)
class Lab:
    """What checks work with. One for each check: its ``app`` is the check's own.

    ``spec`` is the base of all requests (a real runner's image stands there), ``patience`` the seconds after
    which a wait counts as hung, ``alive`` tells whether a process that a sandbox printed the id of still
    exists, or is None where the sandboxes' processes can't be seen. ``package`` is the file that
    ``python -m bridge.host where`` must print, or None where it is a copy elsewhere.
    """

    app: str = ""
    spec: SandboxSpec = field(default_factory=lambda: SandboxSpec(timeout=300))
    patience: float = 60.0
    alive: Callable[[int], bool] | None = process_exists
    package: str | None = bridge.__file__

    def __post_init__(self) -> None:
        if not self.app:
            object.__setattr__(self, "app", f"contract-{uuid.uuid4().hex[:12]}")

    def request(
        self,
        *program: Do,
        name: str | None = None,
        timeout: int | None = None,
        environment: Mapping[str, str] | None = None,
        secret_environment: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        command: tuple[str, ...] | None = None,
    ) -> SandboxRequest:
        """Return a request for a sandbox that runs ``program``, or ``command``, under a fresh name."""
        text = json.dumps([[do.name, do.value] for do in program])
        return SandboxRequest(
            name=name or f"contract-{uuid.uuid4().hex[:12]}",
            app=self.app,
            command=command or ("python", "-c", INTERPRETER, text),
            spec=self.spec if timeout is None else replace(self.spec, timeout=timeout),
            environment=environment or {},
            secret_environment=secret_environment or {},
            tags={"contract": self.app, **(tags or {})},
        )

    async def within(self, awaitable: Awaitable[Result]) -> Result:
        """Await it, or fail after ``patience``."""
        try:
            return await asyncio.wait_for(awaitable, self.patience)
        except asyncio.TimeoutError:
            raise AssertionError(f"still not done after {self.patience} s") from None

    @asynccontextmanager
    async def started(self, runner: Runner, request: SandboxRequest) -> AsyncIterator[Sandbox]:
        """Start a sandbox, and end it when the check is through."""
        sandbox = await self.within(runner.start(request))
        try:
            yield sandbox
        finally:
            await self.within(sandbox.terminate())

    async def result(self, runner: Runner, request: SandboxRequest) -> tuple[SandboxEnd, list[OutputLine]]:
        """Run it to its end; return that and its whole output."""
        async with self.started(runner, request) as sandbox:
            return await self.within(sandbox.wait()), await self.output(sandbox)

    async def output(self, sandbox: Sandbox) -> list[OutputLine]:
        """Return all its output; it has to end."""

        async def collect() -> list[OutputLine]:
            return [line async for line in sandbox.output()]

        return await self.within(collect())

    async def first(self, sandbox: Sandbox, number: int = 1) -> list[str]:
        """Return its first lines, while it runs."""

        async def collect() -> list[str]:
            texts: list[str] = []
            stream = sandbox.output()
            async for line in stream:
                texts.append(line.text)
                if len(texts) == number:
                    return texts
            raise AssertionError(f"the output ended after {texts}")

        return await self.within(collect())


Check = Callable[[Runner, Lab], Awaitable[None]]


def texts(output: list[OutputLine], stream: str = "stdout") -> list[str]:
    """The lines of one stream."""
    return [line.text for line in output if line.stream == stream]


# ---- ends


async def check_exit_codes(runner: Runner, lab: Lab) -> None:
    """A program's exit code is its sandbox's."""
    for code in (0, 1, 3, 124, 137):
        end, _ = await lab.result(runner, lab.request(leave(code)))
        assert (end.end, end.exit_code) == (End.EXITED, code), f"exit({code}) gave {end}"


async def check_signals(runner: Runner, lab: Lab) -> None:
    """A signal that a process got from inside is an exit, and says which."""
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        end, _ = await lab.result(runner, lab.request(raise_signal(number)))
        assert end.end is End.EXITED, f"{number!r} gave {end}"
        assert end.exit_code in (-number, 128 + number), f"{number!r} gave {end}"


async def check_timeout(runner: Runner, lab: Lab) -> None:
    """A timeout is told apart from every other end."""
    end, _ = await lab.result(runner, lab.request(FOR_EVER, timeout=1))
    assert end.end is End.TIMED_OUT, str(end)


async def check_timeout_of_the_deaf(runner: Runner, lab: Lab) -> None:
    """A program that ignores SIGTERM times out like any other."""
    end, _ = await lab.result(runner, lab.request(DEAF, FOR_EVER, timeout=2))
    assert end.end is End.TIMED_OUT, str(end)


async def check_terminate(runner: Runner, lab: Lab) -> None:
    """Terminate has ended it when it returns, and may be repeated, also at once."""
    async with lab.started(runner, lab.request(write("up\n"), FOR_EVER)) as sandbox:
        await lab.first(sandbox)
        await lab.within(asyncio.gather(sandbox.terminate(), sandbox.terminate()))
        end = await lab.within(sandbox.poll())
        assert end is not None
        assert end.end is End.TERMINATED, str(end)
        await lab.within(sandbox.terminate())
        assert await lab.within(sandbox.wait()) == end


async def check_no_process_outlives_terminate(runner: Runner, lab: Lab) -> None:
    """Terminate ends all its processes."""
    async with lab.started(runner, lab.request(GRANDCHILD, FOR_EVER)) as sandbox:
        (pids,) = await lab.first(sandbox)
        assert_seen(lab, pids)
        await lab.within(sandbox.terminate())
        assert_gone(lab, pids)


async def check_no_process_outlives_a_timeout(runner: Runner, lab: Lab) -> None:
    """A timeout ends all its processes."""
    # Long enough to start a Python on a busy machine: the line with the process ids must come.
    async with lab.started(runner, lab.request(GRANDCHILD, FOR_EVER, timeout=5)) as sandbox:
        (pids,) = await lab.first(sandbox)
        assert_seen(lab, pids)
        assert (await lab.within(sandbox.wait())).end is End.TIMED_OUT
        assert_gone(lab, pids)


async def check_no_process_outlives_the_program(runner: Runner, lab: Lab) -> None:
    """The sandbox ends with its main process, and so does whatever that left behind."""
    end, output = await lab.result(runner, lab.request(GRANDCHILD, leave(0)))
    assert (end.end, end.exit_code) == (End.EXITED, 0), str(end)
    (pids,) = texts(output)
    assert len(pids.split()) == 2, "the program didn't print two process ids"
    assert_gone(lab, pids)


def assert_seen(lab: Lab, pids: str) -> None:
    """The program and its child, whose ids it printed, exist: else that they don't later means nothing."""
    numbers = [int(pid) for pid in pids.split()]
    assert len(numbers) == 2, "the program didn't print two process ids"
    assert lab.alive is None or all(map(lab.alive, numbers)), "its processes can't be seen: use Lab(alive=None)"


def assert_gone(lab: Lab, pids: str) -> None:
    """Neither the program nor its child may exist."""
    if lab.alive is not None:
        left = [pid for pid in map(int, pids.split()) if lab.alive(pid)]
        assert not left, f"processes {left} outlived their sandbox"


async def check_terminate_after_the_end(runner: Runner, lab: Lab) -> None:
    """Terminating what has ended changes nothing."""
    async with lab.started(runner, lab.request(leave(3))) as sandbox:
        end = await lab.within(sandbox.wait())
        await lab.within(sandbox.terminate())
        assert await lab.within(sandbox.wait()) == end == SandboxEnd(End.EXITED, 3, end.detail)


async def check_terminate_the_deaf(runner: Runner, lab: Lab) -> None:
    """A program that ignores SIGTERM is ended all the same."""
    async with lab.started(runner, lab.request(DEAF, write("deaf\n"), FOR_EVER)) as sandbox:
        await lab.first(sandbox)
        await lab.within(sandbox.terminate())
        assert (await lab.within(sandbox.wait())).end is End.TERMINATED


async def check_missing_program(runner: Runner, lab: Lab) -> None:
    """A command that doesn't exist is a failure to start, at once or as the sandbox's end."""
    request = lab.request(command=("/nowhere/no-such-program",))
    end, _ = await lab.result(runner, request)
    assert end.end is End.NEVER_STARTED or (end.end is End.EXITED and end.exit_code in (126, 127, 128)), str(end)


# ---- wait and poll


async def check_many_wait(runner: Runner, lab: Lab) -> None:
    """Many may wait for one sandbox, before and after its end, and all hear the same."""
    async with lab.started(runner, lab.request(FOR_EVER)) as sandbox:
        waits = [asyncio.ensure_future(sandbox.wait()) for _ in range(20)]
        await asyncio.sleep(0)
        await lab.within(sandbox.terminate())
        ends = [*await lab.within(asyncio.gather(*waits)), await lab.within(sandbox.wait())]
        assert {end.end for end in ends} == {End.TERMINATED}


async def check_cancelled_wait(runner: Runner, lab: Lab) -> None:
    """Cancelling a wait leaves the sandbox and its other waiters alone."""
    async with lab.started(runner, lab.request(write("up\n"), FOR_EVER)) as sandbox:
        await lab.first(sandbox)
        other = asyncio.ensure_future(sandbox.wait())
        wait = asyncio.ensure_future(sandbox.wait())
        await asyncio.sleep(0)
        wait.cancel()
        await asyncio.wait([wait])
        assert wait.cancelled()
        assert await lab.within(sandbox.poll()) is None
        assert not other.done()
        await lab.within(sandbox.terminate())
        assert (await lab.within(other)).end is End.TERMINATED


async def check_poll(runner: Runner, lab: Lab) -> None:
    """Poll says None while it runs, and then what wait says."""
    async with lab.started(runner, lab.request(write("up\n"), FOR_EVER)) as sandbox:
        await lab.first(sandbox)
        assert await lab.within(sandbox.poll()) is None
    assert await lab.within(sandbox.poll()) == await lab.within(sandbox.wait())
    async with lab.started(runner, lab.request(leave(7))) as sandbox:
        assert await lab.within(sandbox.wait()) == await lab.within(sandbox.poll())


# ---- output


async def check_output_is_live(runner: Runner, lab: Lab) -> None:
    """Lines arrive while the program runs, from both streams, with the time they were written."""
    program = (write("first\n"), write("second\n", "stderr"), FOR_EVER)
    async with lab.started(runner, lab.request(*program)) as sandbox:
        assert sorted(await lab.first(sandbox, 2)) == ["first", "second"]
        assert await lab.within(sandbox.poll()) is None
    for line in await lab.output(sandbox):
        assert line.time.tzinfo is not None


async def check_output_is_complete(runner: Runner, lab: Lab) -> None:
    """All of it, in order, also when it is asked for after the end; the last line needs no line end."""
    program = (write("a\n\nb\n"), write("e\n", "stderr"), write("c\n"), write("no line end"), leave(1))
    end, output = await lab.result(runner, lab.request(*program))
    assert end.exit_code == 1
    assert texts(output) == ["a", "", "b", "c", "no line end"]
    assert texts(output, "stderr") == ["e"]


async def check_no_output(runner: Runner, lab: Lab) -> None:
    """A silent program's output is empty, and ends."""
    _, output = await lab.result(runner, lab.request(leave(0)))
    assert output == []


async def check_bad_utf8(runner: Runner, lab: Lab) -> None:
    """Bad bytes are replaced, and what follows them still arrives."""
    program = (
        write(b"bad \xff\xfe bytes\n"),
        write("gr\u00fc\u00dfe \u20ac\n"),
        write(b"cut \xe2\x82"),
        leave(0),
    )
    _, output = await lab.result(runner, lab.request(*program))
    first, second, third = texts(output)
    assert first.startswith("bad \ufffd"), first
    assert first.endswith(" bytes"), first
    assert second == "gr\u00fc\u00dfe \u20ac"
    assert third == "cut \ufffd", third


async def check_split_characters(runner: Runner, lab: Lab) -> None:
    """A character whose bytes are written one by one arrives whole."""
    program = [write(bytes([byte])) for byte in "\u20ac\U0001f40d\n".encode()]
    _, output = await lab.result(runner, lab.request(*program, leave(0)))
    assert texts(output) == ["\u20ac\U0001f40d"]


async def check_long_lines(runner: Runner, lab: Lab) -> None:
    """A line over the limit is cut and says so; the next one is whole."""
    # In pieces: what a program is given as its argument is limited on every system.
    program = [*[write("x" * 10_000)] * 3, write("\nnext\n"), leave(0)]
    _, output = await lab.result(runner, lab.request(*program))
    long, following = texts(output)
    assert len(long) <= MAX_LINE_LENGTH, len(long)
    assert long.startswith("x" * 1_000)
    assert "cut" in long
    assert following == "next"


async def check_many_lines(runner: Runner, lab: Lab) -> None:
    """100,000 lines arrive in order and cost bounded memory."""
    number = 100_000
    before = resident_peak()
    async with lab.started(runner, lab.request(lines(number), leave(0))) as sandbox:

        async def count() -> int:
            expected = 0
            async for line in sandbox.output():
                assert line.text == str(expected), f"{line.text} in place of {expected}"
                expected += 1
            return expected

        assert await lab.within(count()) == number
    grown = resident_peak() - before
    assert grown < 100 << 20, f"reading 100,000 lines took {grown >> 20} MiB"


def resident_peak() -> int:
    """The most memory this process ever had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def check_output_can_be_left(runner: Runner, lab: Lab) -> None:
    """Who stops reading, or never reads, holds up nobody: the program ends all the same."""
    async with lab.started(runner, lab.request(lines(20_000), leave(5))) as sandbox:
        await lab.first(sandbox)
        assert (await lab.within(sandbox.wait())).exit_code == 5
    end, _ = await lab.result(runner, lab.request(lines(20_000), leave(6)))
    assert end.exit_code == 6


async def check_two_readers(runner: Runner, lab: Lab) -> None:
    """Two may read at once; one that is cancelled takes nothing from the other."""
    async with lab.started(runner, lab.request(write("up\n"), FOR_EVER)) as sandbox:
        stays, goes = (asyncio.ensure_future(lab.output(sandbox)) for _ in range(2))
        await lab.first(sandbox)
        goes.cancel()
        await lab.within(asyncio.wait([goes]))
        assert goes.cancelled()
        await lab.within(sandbox.terminate())
        assert texts(await lab.within(stays)) == ["up"]


# ---- names and tags


async def check_one_name_one_sandbox(runner: Runner, lab: Lab) -> None:
    """Starting twice under one name, one after the other or at once, gives the one sandbox."""
    request = lab.request(FOR_EVER)
    async with lab.started(runner, request) as sandbox:
        again = await lab.within(asyncio.gather(*(runner.start(request) for _ in range(3))))
        assert {other.id for other in again} == {sandbox.id}
        assert {other.name for other in again} == {request.name}
        assert len(await lab.within(runner.running(request.tags))) == 1
    request = lab.request(FOR_EVER)
    at_once = await lab.within(asyncio.gather(*(runner.start(request) for _ in range(5))))
    async with lab.started(runner, request) as sandbox:
        assert {other.id for other in at_once} == {sandbox.id}
    assert not await lab.within(runner.running(request.tags))


async def check_names_come_free(runner: Runner, lab: Lab) -> None:
    """After its end a name can be used again, for a new sandbox."""
    request = lab.request(leave(0))
    async with lab.started(runner, request) as first:
        await lab.within(first.wait())
    async with lab.started(runner, request) as second:
        assert second.id != first.id
        assert (await lab.within(second.wait())).exit_code == 0


async def check_names_belong_to_apps(runner: Runner, lab: Lab) -> None:
    """One name in two apps is two sandboxes."""
    request = lab.request(FOR_EVER)
    other = replace(request, app=f"{lab.app}-other")
    async with lab.started(runner, request) as first, lab.started(runner, other) as second:
        assert first.id != second.id


async def check_find(runner: Runner, lab: Lab) -> None:
    """A running sandbox is found by its name, an ended one isn't, and what is found can be used."""
    request = lab.request(write("up\n"), FOR_EVER)
    assert await lab.within(runner.find(request.app, request.name)) is None
    async with lab.started(runner, request) as sandbox:
        found = await lab.within(runner.find(request.app, request.name))
        assert found is not None
        assert (found.id, found.name) == (sandbox.id, request.name)
        assert await lab.within(runner.find(f"{request.app}-other", request.name)) is None
        assert await lab.first(found) == ["up"]
        await lab.within(found.terminate())
        assert (await lab.within(sandbox.wait())).end is End.TERMINATED
    assert await lab.within(runner.find(request.app, request.name)) is None


async def check_running(runner: Runner, lab: Lab) -> None:
    """Running sandboxes are found by any part of their tags, ended and others aren't."""
    one = lab.request(FOR_EVER, tags={"zenml_step": "one"})
    two = lab.request(FOR_EVER, tags={"zenml_step": "two"})
    async with lab.started(runner, one) as first, lab.started(runner, two) as second:
        ids = {
            step: {sandbox.id for sandbox in await lab.within(runner.running({"contract": lab.app, **tags}))}
            for step, tags in (("all", {}), ("one", {"zenml_step": "one"}), ("none", {"zenml_step": "three"}))
        }
        assert ids == {"all": {first.id, second.id}, "one": {first.id}, "none": set()}
        ((found, tags),) = await lab.within(runner.tagged({"contract": lab.app, "zenml_step": "two"}))
        assert (found.id, tags.items() >= two.tags.items()) == (second.id, True)
        await lab.within(first.terminate())
        left = await lab.within(runner.running({"contract": lab.app}))
        assert [sandbox.id for sandbox in left] == [second.id]
        assert left[0].name == two.name


async def check_by_id(runner: Runner, lab: Lab) -> None:
    """A sandbox is found by its id while it runs and after its end, which it tells; an unknown id isn't."""
    async with lab.started(runner, lab.request(write("up\n"), FOR_EVER)) as sandbox:
        running = await lab.within(runner.by_id(sandbox.id))
        assert running is not None
        assert (running.id, running.name) == (sandbox.id, sandbox.name)
        assert await lab.within(running.poll()) is None
        assert await lab.first(running) == ["up"]
    async with lab.started(runner, lab.request(write("last words\n"), leave(3))) as sandbox:
        end = await lab.within(sandbox.wait())
        ended = await lab.within(runner.by_id(sandbox.id))
        assert ended is not None
        assert await lab.within(ended.poll()) == await lab.within(ended.wait()) == end
        assert texts(await lab.output(ended)) == ["last words"]
        other = sandbox.id[:-1] + ("0" if sandbox.id[-1] != "0" else "1")
    assert await lab.within(runner.by_id(other)) is None


async def check_cancelled_start(runner: Runner, lab: Lab) -> None:
    """A start that is cancelled leaves no sandbox, wherever it was."""
    for turns in (0, 1, 2, 3, 5, 10, 40):
        request = lab.request(FOR_EVER)
        start = asyncio.ensure_future(runner.start(request))
        for _ in range(turns):
            await asyncio.sleep(0)
        start.cancel()
        await lab.within(asyncio.wait([start]))
        if not start.cancelled():
            await lab.within(start.result().terminate())  # it was through already
        left = await lab.within(runner.running(request.tags))
        assert not left, f"cancelled after {turns} turns of the loop, it left {left}"


# ---- what a program finds


async def check_environment(runner: Runner, lab: Lab) -> None:
    """Variables arrive, secret ones too, whatever they hold."""
    values = {"LAB_PLAIN": "plain = \u20ac $HOME", "LAB_EMPTY": ""}
    secret = {"LAB_SECRET": "s3cret \"quoted\" 'too'"}
    request = lab.request(
        *map(show, [*values, *secret, "LAB_UNSET"]), leave(0), environment=values, secret_environment=secret
    )
    _, output = await lab.result(runner, request)
    assert texts(output) == [*values.values(), *secret.values(), "(unset)"]


async def check_secrets_stay_secret(runner: Runner, lab: Lab) -> None:
    """A secret is in no repr, and not in what everybody on a machine can read of a process."""
    secret = uuid.uuid4().hex
    request = lab.request(ARGUMENTS, FOR_EVER, secret_environment={"LAB_SECRET": secret})
    async with lab.started(runner, request) as sandbox:
        (arguments,) = await lab.first(sandbox)
        found = await lab.within(runner.find(request.app, request.name))
        for shown in (request, sandbox, found, runner):
            assert secret not in repr(shown)
            assert secret not in str(shown)
        assert secret not in arguments
        assert secret not in (sandbox.url or "") + sandbox.id + sandbox.name


async def check_own_id(runner: Runner, lab: Lab) -> None:
    """A program finds its sandbox's id in MODAL_SANDBOX_ID."""
    async with lab.started(runner, lab.request(show("MODAL_SANDBOX_ID"), FOR_EVER)) as sandbox:
        assert await lab.first(sandbox) == [sandbox.id]


async def check_own_folder(runner: Runner, lab: Lab) -> None:
    """Sandboxes that could see each other's files have working folders of their own."""
    requests = [lab.request(FOLDER, FOR_EVER) for _ in range(2)]
    async with lab.started(runner, requests[0]) as one, lab.started(runner, requests[1]) as two:
        folders = [await lab.first(sandbox) for sandbox in (one, two)]
    assert lab.alive is None or folders[0] != folders[1]


async def check_host_command(runner: Runner, lab: Lab) -> None:
    """The host command runs this package's host."""
    end, output = await lab.result(runner, lab.request(command=runner.host_command("where")))
    assert end.exit_code == 0, f"{end}: {output}"
    (where,) = texts(output)
    if lab.package is not None:
        assert where == lab.package
    assert where.endswith("/bridge/__init__.py"), where


@asynccontextmanager
async def _host(runner: Runner, lab: Lab, seconds: float = 0) -> AsyncIterator[tuple[CallsHosts, Sandbox, str] | None]:
    """A sandbox in which a host listens after so many seconds; None where this machine has no hosts."""
    assert isinstance(runner, CallsHosts), "it calls no hosts"
    if not runner.can_call:
        yield None
        return
    socket = f"{uuid.uuid4().hex[:12]}.sock"
    async with lab.started(runner, lab.request(command=("python", "-c", HOST, socket, str(seconds)))) as sandbox:
        yield runner, sandbox, socket


async def _answer(lab: Lab, runner: CallsHosts, sandbox: Sandbox, call: HostCall) -> Mapping[str, str | None]:
    async def read() -> bytes:
        return b"".join([data async for data in runner.call(sandbox, call)])

    (frame,) = wire.FrameReader().feed(await lab.within(read()))
    answer: Mapping[str, str | None] = json.loads(frame.body)
    return answer


async def check_calls_reach_the_host(runner: Runner, lab: Lab) -> None:
    """A call brings its variables, secret ones too, to its own step alone; a host that isn't there yet is awaited.

    A step's own temporary folder is none of the host's.
    """
    async with _host(runner, lab, seconds=1) as there:
        if there is None:
            return
        calls, sandbox, socket = there
        secret = uuid.uuid4().hex
        one = HostCall(socket, Call("1", "one"), {"PLAIN": "of one", "TMPDIR": "/"}, {"SECRET": secret})
        assert secret not in repr(one)
        assert await _answer(lab, calls, sandbox, one) == {"step": "one", "PLAIN": "of one", "SECRET": secret}
        two = HostCall(socket, Call("2", "two"))
        assert await _answer(lab, calls, sandbox, two) == {"step": "two", "PLAIN": None, "SECRET": None}


async def check_a_call_can_be_left(runner: Runner, lab: Lab) -> None:
    """Whoever leaves a call early leaves the host as it is."""
    async with _host(runner, lab) as there:
        if there is None:
            return
        calls, sandbox, socket = there
        async with aclosing(calls.call(sandbox, HostCall(socket, Call("1", "one")))) as left:  # type: ignore[type-var]
            await lab.within(anext(left))
        assert (await _answer(lab, calls, sandbox, HostCall(socket, Call("2", "two"))))["step"] == "two"
        assert await sandbox.poll() is None


async def check_a_call_after_the_end(runner: Runner, lab: Lab) -> None:
    """The host of a sandbox that has ended can't be reached, and that is said at once."""
    async with _host(runner, lab) as there:
        if there is None:
            return
        calls, sandbox, socket = there
        await lab.within(sandbox.terminate())
        try:
            await _answer(lab, calls, sandbox, HostCall(socket, Call("1", "one")))
        except RunnerUnavailable:
            return
        raise AssertionError("somebody answered")


CHECKS: tuple[Check, ...] = (
    check_exit_codes,
    check_signals,
    check_timeout,
    check_timeout_of_the_deaf,
    check_terminate,
    check_no_process_outlives_terminate,
    check_no_process_outlives_a_timeout,
    check_no_process_outlives_the_program,
    check_terminate_after_the_end,
    check_terminate_the_deaf,
    check_missing_program,
    check_many_wait,
    check_cancelled_wait,
    check_poll,
    check_output_is_live,
    check_output_is_complete,
    check_no_output,
    check_bad_utf8,
    check_split_characters,
    check_long_lines,
    check_many_lines,
    check_output_can_be_left,
    check_two_readers,
    check_one_name_one_sandbox,
    check_names_come_free,
    check_names_belong_to_apps,
    check_find,
    check_running,
    check_by_id,
    check_cancelled_start,
    check_environment,
    check_secrets_stay_secret,
    check_own_id,
    check_own_folder,
    check_host_command,
    check_calls_reach_the_host,
    check_a_call_can_be_left,
    check_a_call_after_the_end,
)

_NO_PROCESSES = "a function has no processes"
_NO_HOSTS = "a function listens nowhere"

KNOWN_GAPS: Mapping[str, Mapping[str, str]] = {
    "modal": {},
    "process": {},
    "scripted": {
        "check_no_process_outlives_terminate": _NO_PROCESSES,
        "check_no_process_outlives_a_timeout": _NO_PROCESSES,
        "check_no_process_outlives_the_program": _NO_PROCESSES,
        "check_own_folder": "a function has no working folder",
        "check_calls_reach_the_host": _NO_HOSTS,
        "check_a_call_can_be_left": _NO_HOSTS,
        "check_a_call_after_the_end": _NO_HOSTS,
    },
}
"""What a kind of runner can't do: name of the check, reason."""

UNTESTED: Mapping[str, str] = {
    "OUT_OF_MEMORY": "process: told only where the kernel counts it for the control group of the sandbox "
    "(`oom_kill`); else it is EXITED with signal 9. Trying it takes a control group with a limit.",
    "EVICTED": "modal only; nobody can ask for it.",
    "CapacityUnavailable": "modal only.",
}
"""Ends and errors of the protocol that no portable program can provoke, with the reason."""


async def run_check(check: Check, runner: Runner, lab: Lab) -> None:
    """Run a check; where it is a known gap, make sure that it still fails. Raises ``AssertionError``."""
    name = getattr(check, "__name__", str(check))
    reason = KNOWN_GAPS.get(runner.kind, {}).get(name)
    if reason is None:
        await check(runner, lab)
        return
    try:
        await check(runner, lab)
    except AssertionError:
        return
    raise AssertionError(f"{name} holds for {runner.kind}, though KNOWN_GAPS says: {reason}")


async def perform(request: SandboxRequest, stage: Stage) -> SandboxEnd:
    """Perform a program of this module on the scripted runner: its behaviour in the contract suite."""
    if request.command[:2] == ("bridge.host", "where"):
        stage.write(f"{bridge.__file__}\n")
        return SandboxEnd(End.EXITED, 0)
    if request.command[:2] != ("python", "-c"):
        return SandboxEnd(End.NEVER_STARTED, detail=f"{request.command[0]}: no such program")
    environment = {**request.environment, **request.secret_environment, "MODAL_SANDBOX_ID": stage.id}
    for name, value in json.loads(request.command[3]):
        if name in ("stdout", "stderr"):
            stage.write(bytes.fromhex(value), name)
        elif name == "lines":
            for number in range(value):
                stage.write(f"{number}\n")
        elif name == "environment":
            stage.write(environment.get(value, "(unset)") + "\n")
        elif name == "folder":
            stage.write("/\n")
        elif name == "arguments":
            stage.write(json.dumps(request.command) + "\n")
        elif name == "grandchild":
            stage.write("\n")  # there are no processes
        elif name == "for_ever":
            await stage.for_ever()
        elif name == "raise_signal":
            return SandboxEnd(End.EXITED, -value)
        elif name == "exit":
            return SandboxEnd(End.EXITED, value)
    return SandboxEnd(End.EXITED, 0)
