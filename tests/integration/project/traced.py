"""Steps whose code sees the trace of its run."""

from __future__ import annotations

import json
from pathlib import Path

from opentelemetry import trace
from zenml import get_step_context, pipeline, step
from zenml.config.retry_config import StepRetryConfig


def write_down(folder: str, attempt: int = 1) -> None:
    span = trace.get_current_span().get_span_context()
    name = get_step_context().step_run.name
    with trace.get_tracer("user").start_as_current_span(f"work of {name}"):
        seen = {"trace": f"{span.trace_id:032x}", "span": f"{span.span_id:016x}"}
        (Path(folder) / f"{name}-{attempt}.json").write_text(json.dumps(seen))


@step(enable_cache=False)
def show(folder: str) -> int:
    write_down(folder)
    return 1


@step(enable_cache=False, retry=StepRetryConfig(max_retries=1, delay=0))
def flaky(folder: str, left: int) -> int:
    first = not (Path(folder) / "flaky-1.json").exists()
    write_down(folder, 1 if first else 2)
    if first:
        raise ValueError("as told")
    return left


@pipeline(enable_cache=False)
def traced(folder: str) -> None:
    flaky(folder, show(folder))


@pipeline(enable_cache=False)
def untroubled(folder: str) -> None:
    show(folder)


@pipeline(dynamic=True, enable_cache=False)
def decided(folder: str) -> None:
    """Inline steps, called and submitted, one that is tried again; and one in a sandbox of its own."""
    with trace.get_tracer("user").start_as_current_span("round"):
        left = show(folder)
    flaky(folder, left)
    later = show.submit(folder, id="later")
    show.with_options(runtime="isolated")(folder, id="apart")
    later.wait()
