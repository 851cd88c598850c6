"""Pipelines some of whose steps a step operator runs."""

from __future__ import annotations

import os

from shapes import add, await_file, hang_first, one, struck_first, trace
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
def struck(folder: str, ends: dict[str, int]) -> None:
    """A step on the operator for each end, with so many retries."""
    for end, retries in ends.items():
        retry = StepRetryConfig(max_retries=retries, delay=0, backoff=1) if retries else None
        made = struck_first.with_options(retry=retry, step_operator=True)
        if end == "refused":
            made = made.with_options(settings={"step_operator": {"secrets": ["no-such-secret"]}})
        made(folder, end, id=end)


@pipeline
def held(folder: str, first: bool = False) -> None:
    """A step on the operator that waits for a file, ``go`` or, without ``first``, ``never``; and one after it."""
    hang = hang_first if first else cling
    add(folder, hang.with_options(step_operator=True)(folder, id="hangs"), id="later")


@pipeline
def several(folder: str, ours: str, foreign: str | None = None) -> None:
    """A step here, one on our operator, perhaps one on somebody else's, and a command."""
    rows = one(folder, 41)
    train.with_options(step_operator=ours)(folder, rows, id="ours")
    if foreign is not None:
        train.with_options(step_operator=foreign)(folder, rows, id="foreign")
    write = CommandStep(["sh", "-c", f"echo the command writes; echo x > {folder}/written"], name="shell")
    write.with_options(step_operator=ours)()


operated_train = train.with_options(step_operator=True)


@pipeline(dynamic=True, depends_on=[operated_train])
def dynamic(folder: str) -> int:
    """Two steps on the operator at the same time, and one here."""
    rows = one(folder, 41)
    futures = [operated_train.submit(folder, rows, extra) for extra in (0, 10)]
    total = sum(future.load() for future in futures)
    return add(folder, total, 1)
