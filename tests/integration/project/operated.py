"""Pipelines some of whose steps a step operator runs."""

from __future__ import annotations

import os

from shapes import add, await_file, one, struck_first, trace
from zenml import get_step_context, pipeline, step
from zenml.config.retry_config import StepRetryConfig
from zenml.steps import CommandStep


@step(enable_cache=False)
def train(folder: str, rows: int, extra: int = 0) -> int:
    """Says where it runs."""
    variables = ("USER_VARIABLE", "HF_TOKEN", "ZENML_STEP_OPERATOR")
    trace(folder, "begin", **{name: os.environ.get(name) for name in variables})
    print(f"training on {rows} rows", flush=True)
    get_step_context().add_output_metadata({"rows": rows})
    return rows + 1 + extra


@pipeline
def mixed(folder: str) -> None:
    """A step here, two on the step operator, a step here."""
    rows = one(folder, 41)
    trained = train.with_options(step_operator=True)(folder, rows)
    again = train.with_options(step_operator=True)(folder, rows, trained, id="again")
    add(folder, trained, again)


@step(enable_cache=False)
def cling(folder: str) -> int:
    """Runs until it is killed."""
    trace(folder, "begin")
    await_file(f"{folder}/never", 300)
    return 1


@pipeline
def struck(folder: str, ends: list[str], retries: int = 0) -> None:
    """A step on the operator for each end."""
    retry = StepRetryConfig(max_retries=retries, delay=0, backoff=1) if retries else None
    for end in ends:
        struck_first.with_options(retry=retry, step_operator=True)(folder, end, id=end)


@pipeline
def held(folder: str) -> None:
    """A step on the operator that would never end, and one after it."""
    add(folder, cling.with_options(step_operator=True)(folder, id="hangs"), id="later")


@pipeline
def several(folder: str, ours: str, foreign: str) -> None:
    """A step here, one on our operator, one on somebody else's, and a command."""
    rows = one(folder, 41)
    train.with_options(step_operator=ours)(folder, rows, id="ours")
    train.with_options(step_operator=foreign)(folder, rows, id="foreign")
    write = CommandStep(["sh", "-c", f"echo the command writes; echo x > {folder}/written"], name="shell")
    write.with_options(step_operator=ours)()


@pipeline(dynamic=True)
def dynamic(folder: str) -> int:
    """Two steps on the operator at the same time, and one here."""
    rows = one(folder, 41)
    futures = [train.with_options(step_operator=True).submit(folder, rows, extra) for extra in (0, 10)]
    total = sum(future.load() for future in futures)
    return add(folder, total, 1).load()
