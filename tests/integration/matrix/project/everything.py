"""One pipeline that uses what ZenML has around a step. What a hook or a step saw is appended to ``seen``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel
from zenml import ArtifactConfig, Model, get_step_context, log_metadata, pipeline, step
from zenml.client import Client
from zenml.config.retry_config import StepRetryConfig
from zenml.steps.step_context import StepContext


def saw(what: str, **more: object) -> None:
    """Write down that something happened, and in which step; the folder is in the run's environment."""
    context = StepContext.get()
    step = context.step_run.name if context is not None else None
    with (Path(os.environ["SEEN"]) / "seen.jsonl").open("a") as file:
        file.write(json.dumps({"what": what, "step": step, "pid": os.getpid(), **more}) + "\n")


class Shape(BaseModel):
    rows: int
    columns: list[str]


def on_start() -> None:
    saw("start hook")


def on_end(error: BaseException | None) -> None:
    saw("end hook", error=str(error))


def on_success() -> None:
    saw("success hook")


def on_failure(error: BaseException) -> None:
    saw("failure hook", error=str(error))


def start_of_all() -> None:
    saw("the pipeline's start hook")


def end_of_all(error: BaseException | None) -> None:
    saw("the pipeline's end hook", error=type(error).__name__)


def success_of_all() -> None:
    saw("the pipeline's success hook")


def failure_of_all(error: BaseException) -> None:
    saw("the pipeline's failure hook", error=type(error).__name__)


def init(greeting: str) -> dict[str, str]:
    saw("init hook", greeting=greeting)
    return {"greeting": greeting}


def cleanup() -> None:
    saw("cleanup hook")


@step(enable_cache=False)
def first() -> None:
    saw("first", of_init=get_step_context().pipeline_state)


@step(enable_cache=False, on_start=on_start, on_end=on_end, on_success=on_success)
def several() -> tuple[
    Annotated[np.ndarray, ArtifactConfig(name="array", tags=["numbers"])],
    Annotated[Shape, "shape"],
    Annotated[dict[str, Any], "mapping"],
    Annotated[bytes, "raw"],
    Annotated[str, "text"],
]:
    shape = Shape(rows=3, columns=["a", "b"])
    log_metadata({"rows": shape.rows})
    return np.arange(6).reshape(2, 3), shape, {"deep": {"er": [1, None]}}, b"\x00\xff", "ä"


@step(enable_cache=False, on_start=on_start, on_end=on_end, on_success=on_success, on_failure=on_failure)
def flaky(folder: str) -> Annotated[int, "attempts"]:
    count = Path(folder) / "attempts"
    attempts = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(attempts))
    if attempts < 2:
        raise ValueError("not yet")
    return attempts


@step(enable_cache=False)
def use(array: np.ndarray, shape: Shape, attempts: int, factor: int = 1) -> Annotated[float, "total"]:
    """A parameter, inputs of several kinds, a secret, the run's and the step's environment, the model version."""
    context = get_step_context()
    saw(
        "use",
        secret=Client().get_secret("matrix").secret_values,
        run=os.environ.get("OF_THE_RUN"),
        step=os.environ.get("OF_THE_STEP"),
        model=context.model.name,
        of_init=context.pipeline_state,
    )
    return float(array.sum() * factor + shape.rows + attempts)


@step(enable_cache=False, on_failure=on_failure)
def breaks() -> None:
    raise RuntimeError("as told")


@step(enable_cache=False)
def never() -> None:
    saw("never")


@step(enable_cache=True)
def remembered(value: int) -> Annotated[int, "remembered"]:
    saw("remembered", of_init=get_step_context().pipeline_state)
    return value


retry = StepRetryConfig(max_retries=2, delay=0, backoff=1)


around: dict[str, Any] = {
    "model": Model(name="matrix"),
    "on_init": init,
    "on_init_kwargs": {"greeting": "hello"},
    "on_cleanup": cleanup,
    "on_start": start_of_all,
    "on_end": end_of_all,
    "on_success": success_of_all,
    "on_failure": failure_of_all,
}
"""Hooks of steps are those of a static pipeline unless they have their own; in a dynamic one they are the run's."""


@pipeline(dynamic=True, **around)
def dynamic(folder: str, factor: int = 2) -> None:
    """The same as a dynamic pipeline: what it can here, in sandboxes of their own."""
    first()
    array, shape, _, _, _ = several.with_options(runtime="isolated")()
    attempts = flaky.with_options(retry=retry, runtime="isolated")(folder)
    use.with_options(environment={"OF_THE_STEP": "yes"}, experiment_tracker="matrix", runtime="isolated")(
        array, shape, attempts, factor
    )
    remembered(7)
    breaks.with_options(runtime="isolated")()
    never()


@pipeline(**around)
def everything(folder: str, factor: int = 2) -> None:
    first()
    array, shape, _, _, _ = several(after="first")
    attempts = flaky.with_options(retry=retry)(folder)
    use.with_options(environment={"OF_THE_STEP": "yes"}, experiment_tracker="matrix")(array, shape, attempts, factor)
    breaks()
    never(after="breaks")
    remembered(7)
