"""Pipelines as a user writes them. ``trace`` files say which attempts really ran, and when."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from pathlib import Path

from zenml import get_step_context, pipeline, step
from zenml.config.resource_settings import ResourceSettings
from zenml.config.retry_config import StepRetryConfig


def trace(folder: str, what: str, **more: object) -> int:
    """Append a line to the trace of this step; return how many attempts began so far."""
    name = get_step_context().step_run.name
    line = {"step": name, "what": what, "time": time.time(), "pid": os.getpid(), **more}
    line["sandbox"] = os.environ.get("MODAL_SANDBOX_ID")
    path = Path(folder) / f"{name}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return sum('"what": "begin"' in text for text in path.read_text().splitlines())


def await_file(path: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


@step(enable_cache=False)
def one(folder: str, value: int = 1) -> int:
    trace(folder, "begin", cuda=os.environ.get("CUDA_VISIBLE_DEVICES"), cwd=os.getcwd(), job=os.environ.get("FROM_JOB"))
    print(f"value {value}")
    trace(folder, "end")
    return value


@step(enable_cache=False)
def add(folder: str, left: int, right: int = 0) -> int:
    trace(folder, "begin")
    trace(folder, "end")
    return left + right


@step(enable_cache=False)
def fail(folder: str, left: int = 0) -> int:
    trace(folder, "begin")
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
def slow(folder: str, seconds: float = 0.5) -> int:
    trace(folder, "begin", cuda=os.environ.get("CUDA_VISIBLE_DEVICES"))
    time.sleep(seconds)
    trace(folder, "end")
    return 1


@step(enable_cache=True)
def cacheable(folder: str, value: int) -> int:
    trace(folder, "begin")
    return value


@pipeline
def chain(folder: str, length: int = 3) -> None:
    value = one(folder)
    for number in range(1, length):
        value = add(folder, value, id=f"add_{number}")


@pipeline
def fan_out(folder: str, width: int = 4, cpu: float | None = None, seconds: float = 0.5) -> None:
    for number in range(width):
        made = slow
        if cpu is not None:
            made = made.with_options(settings={"resources": ResourceSettings(cpu_count=cpu)})
        made(folder, seconds, id=f"wide_{number}")


@pipeline
def failing(folder: str) -> None:
    """``bad`` fails; ``beside`` is hanging meanwhile; ``later`` is downstream of ``beside``."""
    bad = fail_after(folder, "beside", id="bad")
    add(folder, bad, id="below_bad")
    beside = slow(folder, 2.0, id="beside")
    add(folder, beside, id="later")


@pipeline
def retried(folder: str, how: str = "raise", times: int = 1, retries: int = 2, delay: int = 0) -> None:
    retry = StepRetryConfig(max_retries=retries, delay=delay, backoff=1)
    value = fail_first.with_options(retry=retry)(folder, how, times)
    add(folder, value, id="after")


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
    await_file(f"{folder}/never", 300)
    return 1


@pipeline
def hanging_beside_failure(folder: str) -> None:
    """``bad`` fails once ``hung`` is under way, which doesn't take its end well; ``later`` follows ``hung``."""
    hung = hang_stubbornly(folder, id="hung")
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
    print("it hangs now")
    trace(folder, "begin")
    await_file(f"{folder}/go", 600)  # longer than a slot is leased


@pipeline
def flood(folder: str, lines: int) -> None:
    printer(folder, lines)


@pipeline
def telling(folder: str) -> None:
    tell_and_hang(folder, id="hung")


@pipeline
def diamond(folder: str) -> None:
    top = one(folder)
    add(folder, add(folder, top, id="left"), add(folder, top, id="right"), id="bottom")


@step(enable_cache=False)
def struck_first(folder: str, how: str) -> int:
    """In its first attempt it ends as told, or waits for somebody to strike it; in the next it succeeds."""
    attempt = trace(folder, "begin")
    if attempt > 1:
        return attempt
    if how == "exception":
        raise ValueError("the first attempt")
    if how == "exit":
        os._exit(0)
    await_file(f"{folder}/never", 300)
    return attempt


@pipeline
def struck(folder: str, ends: list[str], timeout: int = 300, retries: int = 1) -> None:
    """A step for each end, all side by side."""
    retry = StepRetryConfig(max_retries=retries, delay=0, backoff=1) if retries else None
    for end in ends:
        made = struck_first.with_options(retry=retry)
        if end == "timeout":
            made = made.with_options(settings={"orchestrator": {"timeout": timeout}})
        made(folder, end, id=end)


@pipeline
def struck_beside_another(folder: str) -> None:
    """``oom`` has no retries and goes first, its chain being the longest; ``other`` has nothing to do with it."""
    below = struck_first(folder, "oom", id="oom")
    add(folder, below, id="below")
    one(folder, id="other")


@pipeline
def mixed(folder: str) -> None:
    """A chain whose third step asks for more memory."""
    more = {"resources": ResourceSettings(memory="2GiB")}
    value = add(folder, 1, id="first")
    value = add(folder, value, id="second")
    value = add.with_options(settings=more)(folder, value, id="big")
    add(folder, value, id="last")


@pipeline
def prepared_for_a_gpu(folder: str) -> None:
    """``load`` takes a while without a GPU, then two steps take turns on one."""
    load = slow(folder, 3.0, id="load")
    train = add.with_options(settings={"orchestrator": {"gpu": "T4"}})
    train(folder, train(folder, load, id="train"), id="tune")


@step(enable_cache=False)
def tell_variable(folder: str, before: int = 0) -> int:
    trace(folder, "begin", variable=os.environ.get("USER_VARIABLE"))
    return before


@pipeline
def with_variable(folder: str) -> None:
    before = tell_variable.with_options(environment={"USER_VARIABLE": "of the step"})(folder, id="has_it")
    tell_variable(folder, before, id="hasn_t")


@pipeline
def failing_once(folder: str) -> None:
    """``again`` fails the first time that it is run, without a retry."""
    one(folder, id="first")
    add(folder, fail_first(folder, id="again", after="first"), id="last")


@step(enable_cache=False)
def exit_late(folder: str) -> int:
    """Succeeds, and its process exits with 1 all the same: what user code leaves to do at exit is done after that."""
    trace(folder, "begin")
    atexit.register(os._exit, 1)
    return 1


@pipeline
def struck_or_done(folder: str, ends: list[str], timeout: int = 300, retries: int = 1) -> None:
    """Those of ``struck``, and for the end ``exit_late`` a step that has succeeded by then."""
    struck.entrypoint(folder, [end for end in ends if end != "exit_late"], timeout, retries)
    if "exit_late" in ends:
        exit_late(folder, id="exit_late")


@pipeline
def mixed_and_slow_in_the_middle(folder: str, seconds: float) -> None:
    """``first`` and ``last`` are of one kind; ``middle`` isn't, and takes a while."""
    middle = slow.with_options(settings={"resources": ResourceSettings(memory="2GiB")})
    first = add(folder, 1, id="first")
    add(folder, first, middle(folder, seconds, id="middle", after="first"), id="last")
