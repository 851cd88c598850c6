"""Pipelines whose steps wait to be told, for flows that are killed meanwhile."""

from __future__ import annotations

import os

import shapes
from zenml import get_step_context, pipeline, step
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode
from zenml.steps import CommandStep


@step(enable_cache=False)
def told(folder: str, before: int = 0, lines: int = 40) -> int:
    """Speaks, waits for the file `go-<step>-<attempt>`, speaks again; fails if `fail-<step>-<attempt>` is there."""
    name = get_step_context().step_run.name
    attempt = shapes.trace(folder, "begin")
    for number in range(lines):
        print(f"{name} {attempt} before {number}")
    shapes.await_file(f"{folder}/go-{name}-{attempt}", 300)
    for number in range(lines):
        print(f"{name} {attempt} after {number}")
    if os.path.exists(f"{folder}/fail-{name}-{attempt}"):
        raise ValueError("as told")
    shapes.trace(folder, "end")
    return attempt


@pipeline
def three(folder: str) -> None:
    """A chain; the last one may be tried again."""
    retry = StepRetryConfig(max_retries=1, delay=0, backoff=1)
    value = told(folder, 0, id="first")
    value = told(folder, value, id="second")
    told.with_options(retry=retry)(folder, value, id="third")


@pipeline
def beside(folder: str, steps: list[str], delay: int = 0, below: str = "") -> None:
    """Steps side by side, each of which may be tried again once, after ``delay`` seconds; one ``below`` them all."""
    retry = StepRetryConfig(max_retries=1, delay=delay, backoff=1)
    for name in steps:
        told.with_options(retry=retry)(folder, 0, id=name)
    if below:
        told(folder, 0, id=below, after=steps)


@pipeline
def apart(folder: str) -> None:
    """Two steps side by side, without retries."""
    for name in ("one", "two"):
        told(folder, 0, id=name)


@pipeline
def alone(folder: str) -> None:
    """One step, without retries."""
    told(folder, 0, id="only")


@pipeline(dynamic=True)
def dynamic(folder: str) -> None:
    """One step in a sandbox of its own, beside one in the function's; each may be tried again once."""
    retry = StepRetryConfig(max_retries=1, delay=0, backoff=1)
    apart = told.with_options(runtime="isolated", retry=retry).submit(folder, id="apart")
    told.with_options(retry=retry)(folder, id="here")
    told(folder, apart, id="last")


@pipeline(dynamic=True, enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def falls(folder: str) -> None:
    """Fails, if it is told to, while a command runs in a sandbox of its own."""
    command = ["sh", "-c", f"touch {folder}/sleeps; exec sleep 600"]
    CommandStep(command, name="sleeps", runtime="isolated").submit()
    told(folder, id="fails")


@pipeline(dynamic=True)
def catches(folder: str) -> None:
    """Goes on after a child has failed."""
    try:
        falls(folder)
    except ValueError:
        told(folder, id="goes_on")


@pipeline(dynamic=True)
def one_apart(folder: str) -> None:
    told.with_options(runtime="isolated")(folder, id="runs")


@pipeline(dynamic=True)
def crowded(folder: str) -> None:
    """A step of a child runs in a sandbox of its own; once ``here`` has ended, another one wants one as well."""
    child = one_apart.submit(folder)
    told(folder, id="here")
    told.with_options(runtime="isolated")(folder, id="waits")
    child.wait()
