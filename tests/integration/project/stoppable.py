"""Pipelines that are stopped in the middle: they would never end by themselves."""

from __future__ import annotations

import os
import signal
import time

from shapes import add, await_file, fail, fail_first, hang_stubbornly, trace
from zenml import get_step_context, pipeline, step
from zenml.config.resource_settings import ResourceSettings
from zenml.config.retry_config import StepRetryConfig


@step(enable_cache=False)
def hang(folder: str) -> int:
    """Runs until it is stopped."""
    trace(folder, "begin")
    await_file(f"{folder}/never", 300)
    return 1


@step(enable_cache=False)
def cling(folder: str) -> int:
    """Doesn't heed ZenML's interruption, or anything else that can be ignored."""
    trace(folder, "begin")
    while True:
        try:
            time.sleep(0.05)
        except BaseException as error:
            trace(folder, "interrupted", error=type(error).__name__)


@pipeline
def held_well(folder: str) -> None:
    """As ``held``, but ``hangs`` lets itself be interrupted: a step that raises then is a failed one to ZenML."""
    retry = StepRetryConfig(max_retries=3, delay=600, backoff=1)
    fail_first.with_options(retry=retry)(folder, "raise", 9, id="again")
    add(folder, hang(folder, id="hangs"), id="later")


@pipeline
def held(folder: str) -> None:
    """``hangs`` runs and doesn't take its end well, ``again`` waits for a far retry, ``later`` follows ``hangs``."""
    retry = StepRetryConfig(max_retries=3, delay=600, backoff=1)
    fail_first.with_options(retry=retry)(folder, "raise", 9, id="again")
    add(folder, hang_stubbornly(folder, id="hangs"), id="later")


@pipeline
def in_line(folder: str) -> None:
    """With one place: ``again`` has it first, fails, and has to wait until ``hangs`` gives it back."""
    retry = StepRetryConfig(max_retries=1, delay=0, backoff=1)
    failed_once = fail_first.with_options(retry=retry)(folder, "kill", 9, id="again")
    add(folder, add(folder, failed_once, id="below"), id="far")
    hang_stubbornly(folder, id="hangs")


@pipeline
def clinging(folder: str) -> None:
    """``hangs`` gives way to an interruption, ``clings`` doesn't."""
    add(folder, hang(folder, id="hangs"), id="later")
    cling(folder, id="clings")


@pipeline
def limping(folder: str) -> None:
    """``bad`` fails while ``hangs`` runs and ``again`` waits for a far retry."""
    retry = StepRetryConfig(max_retries=3, delay=600, backoff=1)
    fail_first.with_options(retry=retry)(folder, "raise", 9, id="again")
    add(folder, hang(folder, id="hangs"), id="later")
    add(folder, fail(folder, id="bad"), id="below_bad")


@step(enable_cache=False)
def tell(folder: str, value: int = 0) -> int:
    """Waits for a file of its own, and says so."""
    trace(folder, "begin")
    name = get_step_context().step_run.name
    await_file(f"{folder}/go-{name}", 180)
    print(f"{name} goes on", flush=True)
    return value + 1


@pipeline
def telling_twice(folder: str) -> None:
    """Two steps, one after the other, each of which waits to be told."""
    tell(folder, tell(folder, id="first"), id="second")


@pipeline
def telling_thrice(folder: str) -> None:
    """As ``telling_twice``; each step may be tried again once."""
    made = tell.with_options(retry=StepRetryConfig(max_retries=1, delay=0, backoff=1))
    made(folder, made(folder, id="first"), id="second")


@pipeline(dynamic=True)
def telling_apart(folder: str) -> None:
    """As ``telling_thrice``, each step in a sandbox of its own."""
    retry = StepRetryConfig(max_retries=1, delay=0, backoff=1)
    made = tell.with_options(retry=retry, runtime="isolated")
    made(folder, made(folder, id="first"), id="second")


@step(enable_cache=False)
def fail_when_told(folder: str) -> int:
    """Waits for a file of its own, and fails."""
    trace(folder, "begin")
    await_file(f"{folder}/fail-{get_step_context().step_run.name}", 180)
    raise ValueError("as told")


@step(enable_cache=False)
def die_when_told(folder: str) -> int:
    """Waits for a file of its own, and kills itself."""
    trace(folder, "begin")
    await_file(f"{folder}/fail-{get_step_context().step_run.name}", 180)
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


@pipeline
def before_a_fan(folder: str, width: int = 5) -> None:
    """``bad`` dies when told, beside ``first`` and ``second``, of which there is a fan below."""
    die_when_told(folder, id="bad")
    above = [tell(folder, id=name) for name in ("first", "second")]
    for number in range(width):
        add(folder, above[0], after=[above[1]], id=f"wide_{number}")


@pipeline
def given_up(folder: str) -> None:
    """``late`` could be tried again."""
    fail_when_told(folder, id="bad")
    fail_when_told.with_options(retry=StepRetryConfig(max_retries=2, delay=0, backoff=1))(folder, id="late")


@pipeline
def tried_again(folder: str) -> None:
    """``late`` fails when told, and could be tried again."""
    fail_when_told.with_options(retry=StepRetryConfig(max_retries=2, delay=0, backoff=1))(folder, id="late")


@pipeline
def outlasting(folder: str, retries: int = 0) -> None:
    """``bad`` fails when told, beside ``long``, which comes to its end when told."""
    fail_when_told(folder, id="bad")
    retry = StepRetryConfig(max_retries=retries, delay=0, backoff=1) if retries else None
    tell.with_options(retry=retry)(folder, id="long")


@pipeline
def held_in_both(folder: str) -> None:
    """``hangs`` runs in a sandbox that it could share with ``later``, ``alone`` in one of its own."""
    add(folder, hang(folder, id="hangs"), id="later")
    more = {"resources": ResourceSettings(memory="2GiB")}
    hang.with_options(settings=more)(folder, id="alone")


@step(enable_cache=False)
def talk(folder: str) -> int:
    """Says much once it is told to, ten times what a flow holds of a step that nobody reads."""
    trace(folder, "begin")
    await_file(f"{folder}/go-talk", 180)
    for number in range(600):
        os.write(1, f"{number} ".encode().ljust(1023, b".") * 64 + b"\n")
    trace(folder, "end")
    return 1


@pipeline
def talking(folder: str) -> None:
    """``talks`` says much when told, then ``hangs`` hangs."""
    hang_stubbornly.with_options(parameters={"folder": folder})(after=[talk(folder, id="talks")], id="hangs")
