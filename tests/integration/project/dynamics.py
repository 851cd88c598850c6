"""Dynamic pipelines: what runs is decided as they run."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Annotated

from shapes import add, await_file, fail_after, fail_first, hang_first, one, slow, struck_first, trace
from zenml import pipeline, step, unmapped, wait
from zenml.client import Client
from zenml.config.resource_settings import ResourceSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.execution.pipeline.dynamic.future_registry import StartupCancelled
from zenml.execution.pipeline.dynamic.run_context import DynamicPipelineRunContext
from zenml.models import PipelineRunUpdate
from zenml.steps import CommandStep

AGAIN = StepRetryConfig(max_retries=1, delay=0, backoff=1)


def tokens() -> list[str]:
    """The variables by which a process is logged in to Modal or Prefect."""
    return [name for name in os.environ if name.startswith(("MODAL_TOKEN", "PREFECT_"))]


@step(enable_cache=False)
def seeds(folder: str, number: int) -> list[int]:
    trace(folder, "begin", tokens=tokens())
    return list(range(1, number + 1))


@step(enable_cache=False, settings={"resources": ResourceSettings(cpu_count=0.5, memory="256MB")})
def square(folder: str, seed: int) -> int:
    """Has a sandbox of its own, since it asks for a machine."""
    trace(folder, "begin", tokens=tokens())
    print(f"the square of {seed}", flush=True)
    return seed * seed


@step(enable_cache=False, runtime="isolated")
def apart(folder: str, value: int) -> int:
    trace(folder, "begin")
    return value + 1


def note(what: str) -> None:
    with open(os.environ["HOOKS"], "a") as file:
        file.write(f"{what}\n")


def on_start() -> None:
    note("start")


def on_end(exception: BaseException | None = None) -> None:
    note(f"end {exception}")


def on_success() -> None:
    note("success")


def on_failure(exception: BaseException) -> None:
    note(f"failure {type(exception).__name__} {exception}")


def on_pause() -> None:
    note("pause")


def on_resume() -> None:
    note("resume")


def somebody_resumes_it() -> None:
    """As whoever resumes a run in the moment in which it has paused: ZenML is told so before Prefect is asked."""
    context = DynamicPipelineRunContext.get()
    assert context is not None
    Client().zen_store.update_run(context.run.id, PipelineRunUpdate(status=ExecutionStatus.RESUMING))


@pipeline(dynamic=True, enable_cache=False)
def inner(folder: str, value: int) -> Annotated[int, "inner"]:
    return apart(folder, value)


@pipeline(dynamic=True)
def everything(folder: str) -> Annotated[int, "total"]:
    """A map, a loop, a condition, futures, retries here and apart, a child pipeline, commands here and apart."""
    again = fail_first.with_options(retry=AGAIN)
    futures = [
        again.submit(folder, id="inline_again"),
        again.with_options(runtime="isolated").submit(folder, id="again"),
    ]
    on_gpu = {"orchestrator": {"gpu": "T4"}}
    command = ["sh", "-c", f"echo the command writes; touch {folder}/written"]
    shell = CommandStep(command, name="shell", runtime="isolated", settings=on_gpu).submit(after=futures[1])
    CommandStep(
        ["sh", "-c", f"echo the command here writes in $MODAL_SANDBOX_ID; echo x >> {folder}/written_here"],
        name="shell_here",
    )()
    child = inner.submit(folder, 10)
    squares = square.map(unmapped(folder), seeds(folder, 2))
    total = 0
    for part in squares.load():
        total += part
    if total == 5:
        total += sum(future.load() for future in futures) + child.result().load()
    shell.wait()
    return add(folder, total, 100)


@step(enable_cache=False, runtime="isolated")
def hangs(folder: str, seconds: float = 120) -> int:
    """Runs until a file is there, or for so long."""
    trace(folder, "begin")
    with contextlib.suppress(TimeoutError):
        await_file(f"{folder}/go", seconds)
    return 1


@step(enable_cache=False)
def hangs_here(folder: str) -> int:
    trace(folder, "begin")
    await_file(f"{folder}/go-here", 120)
    return 2


@step(enable_cache=False)
def fails_when_told(folder: str) -> int:
    trace(folder, "begin")
    await_file(f"{folder}/go")
    raise ValueError("as told")


@pipeline(dynamic=True)
def commanding(folder: str) -> None:
    """Commands where the function runs; the second fails, and a third would follow it."""
    CommandStep(["touch", f"{folder}/first"], name="first")()
    CommandStep(["sh", "-c", "echo the command breaks; exit 3"], name="second")()
    CommandStep(["touch", f"{folder}/third"], name="third")()


@pipeline(dynamic=True)
def held(folder: str) -> None:
    """One waits in a sandbox of its own, one in that of the orchestration."""
    first = hangs.submit(folder)
    second = hangs_here.with_options(retry=AGAIN)(folder)
    add(folder, first, second)


@pipeline(dynamic=True)
def held_at_first(folder: str) -> None:
    """Waits in the sandbox of its first attempt; the second is done at once."""
    first = hang_first.with_options(runtime="isolated", retry=AGAIN)(folder, id="hung")
    add(folder, first)


@pipeline(dynamic=True)
def held_in_both(folder: str) -> None:
    """One waits in a sandbox of its own, one in that of the orchestration."""
    hangs.submit(folder, id="alone")
    hangs_here(folder, id="hangs")


@pipeline(dynamic=True)
def narrow(folder: str) -> None:
    """Three at once, if they may, for one to three seconds."""
    slow.with_options(runtime="isolated").map(unmapped(folder), seeds(folder, 3))


@pipeline(dynamic=True)
def failing(folder: str) -> None:
    """One fails while another runs, whose end depends on the mode; a third would need the first."""
    bad = fail_after.with_options(runtime="isolated").submit(folder, "hangs")
    hangs.submit(folder, 20)
    add.submit(folder, bad, id="below")


@pipeline(dynamic=True)
def asking(folder: str) -> None:
    """Asks a question, and pauses where nobody answers; then fails as long as a file isn't there.

    Before it one step has run here, and one in a sandbox of its own.
    """
    before = apart(folder, one(folder, 1))
    answer = wait(schema=int, timeout=1, poll_interval=1, name="how many")
    if not os.path.exists(f"{folder}/go"):
        raise ValueError("no go")
    add(folder, before, answer)


@pipeline(dynamic=True)
def selfish(folder: str) -> None:
    """An inline step that asks for a GPU."""
    one.with_options(settings={"orchestrator": {"gpu": "T4"}})(folder)
    Path(folder, "went on").touch()


@pipeline(dynamic=True, settings={"orchestrator": {"timeout": 300}})
def modest(folder: str) -> None:
    """A child whose settings are for steps in sandboxes of their own."""
    apart(folder, 1)


@pipeline(dynamic=True, settings={"orchestrator": {"gpu": "T4"}})
def greedy(folder: str) -> None:
    """A child that asks for a GPU, and whose step runs where that of its caller does."""
    one(folder)


@pipeline(dynamic=True)
def calling(folder: str) -> None:
    """Calls a child that can have what it asks for, and one that can't."""
    modest(folder)
    greedy(folder)


@pipeline(dynamic=True, enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def falling(folder: str) -> None:
    """Fails while a command runs in a sandbox of its own."""
    command = ["sh", "-c", f"touch {folder}/sleeps.jsonl; exec sleep 600"]
    CommandStep(command, name="sleeps", runtime="isolated").submit()
    fail_after(folder, "sleeps")


@pipeline(dynamic=True)
def catching(folder: str) -> None:
    """Goes on after a child has failed."""
    try:
        falling(folder)
    except ValueError:
        hangs_here(folder)


@pipeline(dynamic=True, settings={"orchestrator": {"warm": False, "modal_environment": "elsewhere", "gpu": "T4"}})
def careless(folder: str) -> None:
    """A child that names what changes nothing on local processes."""
    one(folder, 1)
    apart(folder, one(folder, 2, id="again"))


@pipeline(dynamic=True)
def tolerant(folder: str) -> None:
    careless(folder)


@pipeline(dynamic=True, execution_mode=ExecutionMode.CONTINUE_ON_FAILURE)
def struck_apart(folder: str, ends: list[str], timeout: int) -> None:
    """A step in a sandbox of its own for each end, with one retry; ``alone`` has none of any kind."""
    made = struck_first.with_options(runtime="isolated")
    for end in ends:
        settings = {"orchestrator": {"timeout": timeout}} if end == "timeout" else {}
        made.with_options(retry=AGAIN, settings=settings).submit(folder, end, id=end)
    made.with_options(settings={"orchestrator": {"infrastructure_retries": 0}}).submit(folder, "evict", id="alone")


@pipeline(dynamic=True)
def asking_briefly(folder: str) -> None:
    """Asks a question and waits for the answer."""
    answer = wait(schema=int, timeout=120, poll_interval=1, name="how many")
    add(folder, one(folder, 1), answer)


@pipeline(dynamic=True)
def given_up(folder: str) -> None:
    """Fails for good while a step in a sandbox of its own runs, that will fail and might be tried again."""
    fails_when_told.with_options(runtime="isolated", retry=AGAIN).submit(folder)
    try:
        fail_after.with_options(runtime="isolated").submit(folder, "fails_when_told").load()
    finally:
        Path(folder, "has-failed").touch()


@pipeline(dynamic=True)
def given_up_by_child(folder: str) -> None:
    """The same in a child."""
    given_up(folder)


@pipeline(dynamic=True, execution_mode=ExecutionMode.STOP_ON_FAILURE)
def given_up_by_mode(folder: str) -> None:
    """The same where ZenML's runner says that it has failed, and not the function."""
    fails_when_told.with_options(runtime="isolated", retry=AGAIN).submit(folder)
    fail_after.with_options(runtime="isolated").submit(folder, "fails_when_told")
    context = DynamicPipelineRunContext.get()
    assert context is not None
    with contextlib.suppress(StartupCancelled):
        while True:
            context.runner.raise_if_startup_cancelled()
            time.sleep(0.1)
    Path(folder, "has-failed").touch()


@pipeline(dynamic=True, execution_mode=ExecutionMode.CONTINUE_ON_FAILURE)
def untroubled(folder: str) -> None:
    """Comes to its end whatever becomes of its step, before ZenML's runner has looked at that."""
    future = hangs.submit(folder)
    while future.running():
        time.sleep(0.1)


@pipeline(dynamic=True)
def fenced(folder: str) -> None:
    """A command that may reach one domain, which isn't ZenML's."""
    domains = {"orchestrator": {"outbound_domain_allowlist": ["pypi.org"]}}
    CommandStep(["touch", f"{folder}/inside"], name="inside", runtime="isolated", settings=domains)()
