"""Pipelines as a user writes them. ``trace`` files say which attempts really ran, and when."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import store  # a module of the user's that is called like one of ours
from zenml import add_tags, get_step_context, log_metadata, pipeline, step
from zenml.config.resource_settings import ResourceSettings
from zenml.config.retry_config import StepRetryConfig

AT_IMPORT = os.environ.get("USER_VARIABLE")


def trace(folder: str, what: str, **more: object) -> int:
    """Append a line to the trace of this step; return how many attempts began so far."""
    name = get_step_context().step_run.name
    line = {"step": name, "what": what, "time": time.time(), "pid": os.getpid(), **more}
    path = Path(folder) / f"{name}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return sum('"what": "begin"' in text for text in path.read_text().splitlines())


def await_file(path: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


@step(enable_cache=False)
def one(folder: str, value: int = 1) -> int:
    environment = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "USER_VARIABLE")}
    trace(folder, "begin", environment=environment, cwd=os.getcwd(), store=store.__file__)
    print(f"value {value}")
    trace(folder, "end")
    return value


@step(enable_cache=False)
def add(folder: str, left: int, right: int = 0) -> int:
    trace(folder, "begin")
    trace(folder, "end")
    return left + right


@step(enable_cache=False)
def fail(folder: str, left: int = 0, once_begun: str = "") -> int:
    trace(folder, "begin")
    if once_begun:
        await_file(f"{folder}/{once_begun}.jsonl")
    raise ValueError("as told")


@step(enable_cache=False)
def fail_after(folder: str, other: str) -> int:
    """Fails once another step is under way."""
    trace(folder, "begin")
    await_file(f"{folder}/{other}.jsonl")
    raise ValueError("as told")


@step(enable_cache=False)
def fail_first(folder: str, how: str = "raise", times: int = 1) -> int:
    """Fails ``times`` times, in one of several ways, and then succeeds."""
    attempt = trace(folder, "begin")
    if attempt <= times:
        if how == "raise":
            raise ValueError(f"attempt {attempt}")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if how == "exit 0":
            os._exit(0)
        if how == "sys.exit":
            sys.exit(0)
    if how == "kill parent":
        await_file(f"{folder}/go")
    return attempt


@step(enable_cache=False)
def hang_first(folder: str, times: int = 1) -> int:
    """Waits for a file in its first ``times`` attempts."""
    attempt = trace(folder, "begin")
    if os.path.exists(f"{folder}/break"):
        raise ValueError("broken")
    if attempt <= times:
        await_file(f"{folder}/go")
    trace(folder, "end")
    return attempt


@step(enable_cache=False)
def meet(folder: str, others: int = 1, seconds: float = 0.0) -> int:
    """Waits until ``others`` steps have come, and then for ``seconds``."""
    trace(folder, "begin", cuda=os.environ.get("CUDA_VISIBLE_DEVICES"))
    (Path(folder) / f"here-{get_step_context().step_run.name}").touch()
    deadline = time.monotonic() + 60
    while len(list(Path(folder).glob("here-*"))) < others:
        if time.monotonic() > deadline:
            raise TimeoutError("the others didn't come")
        time.sleep(0.02)
    time.sleep(seconds)
    trace(folder, "end")
    return others


@step(enable_cache=False)
def slow(folder: str, seconds: float = 0.5) -> int:
    trace(folder, "begin", cuda=os.environ.get("CUDA_VISIBLE_DEVICES"))
    time.sleep(seconds)
    trace(folder, "end")
    return 1


@step(enable_cache=True)
def cacheable(folder: str, value: int) -> int:
    trace(folder, "begin")
    return value


@step(enable_cache=False)
def loud(folder: str, lines: int) -> None:
    name = get_step_context().step_run.name
    for number in range(lines):
        print(f"{name} says {number} " + "x" * 200)


@step(enable_cache=False)
def randoms(folder: str) -> str:
    import random
    import uuid

    import numpy

    trace(folder, "begin", random=random.random(), numpy=float(numpy.random.rand()), uuid=str(uuid.uuid4()))
    return ""


@pipeline
def zoo(folder: str) -> None:
    """All that is to succeed, in one run."""
    top = one(folder)
    add(folder, add(folder, top, id="left"), add(folder, top, id="right"), id="bottom")
    value = one(folder, id="chain_0")
    for number in range(1, 4):
        value = add(folder, value, id=f"chain_{number}")
    for number in range(3):
        meet(folder, 3, id=f"meet_{number}")
    for number in range(2):
        loud(folder, 300, id=f"loud_{number}")
        randoms(folder, id=f"random_{number}")
    environment_of.with_options(environment={"USER_VARIABLE": "for the step"})(folder)


@pipeline
def ends(folder: str) -> None:
    """Each way for an attempt to end, side by side."""
    twice = StepRetryConfig(max_retries=2, delay=0, backoff=1)
    once = StepRetryConfig(max_retries=1, delay=0, backoff=1)
    add(folder, fail_first.with_options(retry=twice)(folder, id="raises_once"), id="after")
    fail_first.with_options(retry=once)(folder, "raise", 9, id="raises_always")
    fail_first.with_options(retry=once)(folder, "kill", id="killed_once")
    fail_first(folder, "kill", id="killed")
    fail_first(folder, "exit 0", id="exits_0")
    fail_first(folder, "sys.exit", id="sys_exits_0")


@pipeline
def chain(folder: str, length: int = 3) -> None:
    value = one(folder)
    for number in range(1, length):
        value = add(folder, value, id=f"add_{number}")


@step(enable_cache=False)
def note(folder: str, before: int = 0) -> int:
    """Reads of its run what earlier steps have added to it, and adds to it."""
    run = get_step_context().pipeline_run
    trace(folder, "begin", seen=sorted(run.run_metadata), tags=sorted(tag.name for tag in run.tags), status=run.status)
    name = get_step_context().step_run.name
    log_metadata({name: 1}, run_id_name_or_prefix=run.id)
    add_tags([name], run=run.id)
    return before + 1


@pipeline
def notes(folder: str) -> None:
    value = note(folder, id="note_0")
    for number in range(1, 4):
        value = note(folder, value, id=f"note_{number}")


@step(enable_cache=False)
def pass_on(folder: str, text: str) -> None:
    """Writes the file in which its host expects what ZenML has answered to its end, and ends before ZenML was told."""
    trace(folder, "begin")
    Path(f"{os.getcwd()}.end").write_text(text)
    os._exit(0)


@pipeline
def passing_on(folder: str, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        pass_on(folder, text, id=name)


@pipeline
def fan_out(folder: str, width: int = 4, others: int = 1, cpu: float | None = None, seconds: float = 0.5) -> None:
    for number in range(width):
        made = slow if others == 1 else meet
        if cpu is not None:
            made = made.with_options(settings={"resources": ResourceSettings(cpu_count=cpu)})
        if others == 1:
            made(folder, seconds, id=f"wide_{number}")
        else:
            made(folder, others, seconds, id=f"wide_{number}")


@step(enable_cache=False)
def environment_of(folder: str) -> str:
    trace(
        folder,
        "begin",
        at_import=AT_IMPORT,
        now=os.environ.get("USER_VARIABLE"),
        main_thread=threading.current_thread() is threading.main_thread(),
        group=os.getpgid(0),
        session_leader=os.getpgid(0) == os.getpid(),
        argv=sys.argv,
        store=store.__file__,
    )
    atexit.register(Path(folder, "at-exit").touch)
    return ""


@pipeline
def gpus(folder: str) -> None:
    two = ResourceSettings(gpu_count=1)
    for number in range(2):
        meet.with_options(settings={"resources": two})(folder, 3, id=f"gpu_{number}")
    meet.with_options(settings={"resources": ResourceSettings(gpu_count=0)})(folder, 3, id="cpu_only")


@pipeline
def failing(folder: str) -> None:
    """``bad`` fails; ``beside`` is hanging meanwhile; ``later`` is downstream of ``beside``."""
    bad = fail(folder, once_begun="beside", id="bad")
    add(folder, bad, id="below_bad")
    beside = slow(folder, 4.0, id="beside")
    add(folder, beside, id="later")


@pipeline
def retried(folder: str, how: str = "raise", times: int = 1, retries: int = 2, delay: int = 0) -> None:
    retry = StepRetryConfig(max_retries=retries, delay=delay, backoff=1)
    value = fail_first.with_options(retry=retry)(folder, how, times)
    add(folder, value, id="after")


@pipeline
def retried_beside(folder: str) -> None:
    """Two whose first attempts die with the process that forks, and which try again in the same moment."""
    retry = StepRetryConfig(max_retries=2, delay=0, backoff=1)
    fail_first.with_options(retry=retry)(folder, "kill parent", 1)
    hang_first.with_options(retry=retry)(folder)


@pipeline
def abandoned(folder: str) -> None:
    """``again`` waits for a retry that is far away when ``bad`` fails."""
    retry = StepRetryConfig(max_retries=3, delay=600, backoff=1)
    fail_first.with_options(retry=retry)(folder, "raise", 9, id="again")
    bad = slow(folder, 1.5)
    fail(folder, bad, id="bad")


@pipeline
def cached(folder: str, value: int) -> None:
    first = cacheable(folder, value, id="first")
    cacheable(folder, first, id="second")


@pipeline
def hanging(folder: str) -> None:
    top = one(folder)
    hung = hang_first(folder, id="hung")
    add(folder, top, hung, id="bottom")


@step(enable_cache=False)
def hang_stubbornly(folder: str) -> int:
    """Runs until it is killed, and answers SIGTERM with a failure of its own."""

    def refuse(number: int, frame: object) -> None:
        raise RuntimeError("not like this")

    signal.signal(signal.SIGTERM, refuse)
    trace(folder, "begin")
    await_file(f"{folder}/never")
    return 1


@pipeline
def hanging_stubbornly(folder: str) -> None:
    """As ``hanging``, but ``hung`` doesn't take its end well."""
    top = one(folder)
    add(folder, top, hang_stubbornly(folder, id="hung"), id="bottom")


@pipeline
def hanging_beside_failure(folder: str) -> None:
    """``bad`` fails once ``hung`` is under way, which would wait for a minute; ``later`` follows ``hung``."""
    hung = hang_first(folder, id="hung")
    fail_after(folder, "hung", id="bad")
    add(folder, hung, id="later")


@step(enable_cache=False)
def printer(folder: str, lines: int) -> None:
    """Prints bytes that aren't UTF-8, and many lines."""
    sys.stdout.flush()
    os.write(1, b"bad bytes: \xff\xfe\n")
    for number in range(lines):
        print(f"line {number}")


@step(enable_cache=False)
def tell_and_hang(folder: str) -> None:
    trace(folder, "begin")
    print("it hangs now")
    await_file(f"{folder}/go")


@step(enable_cache=False)
def tell_hang_and_tell(folder: str) -> None:
    tell_and_hang.entrypoint(folder)
    print("it goes on")


@pipeline
def flood(folder: str, lines: int) -> None:
    printer(folder, lines)


@pipeline
def telling(folder: str) -> None:
    tell_and_hang(folder, id="hung")


@pipeline
def telling_again(folder: str) -> None:
    tell_hang_and_tell(folder, id="hung")


@pipeline
def held(folder: str) -> None:
    """``hung`` runs until it is told, ``again`` waits for a retry that is far away, ``later`` follows ``hung``."""
    retry = StepRetryConfig(max_retries=3, delay=600, backoff=1)
    fail_first.with_options(retry=retry)(folder, "raise", 9, id="again")
    add(folder, hang_first(folder, id="hung"), id="later")


@step(enable_cache=False)
def load_library(folder: str, path: str) -> None:
    """Loads a library into its process, as PyTorch does that of CUDA."""
    ctypes.CDLL(path)
    trace(folder, "begin", loaded=os.path.realpath(path) in Path("/proc/self/maps").read_text())


@pipeline
def loading(folder: str, path: str) -> None:
    load_library(folder, path, id="loads")
    one(folder)
