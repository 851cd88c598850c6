"""Pipelines some of whose steps a step operator runs."""

from __future__ import annotations

import os

from shapes import add, await_file, fail, fail_first, hang_first, one, struck_first, trace
from zenml import get_step_context, pipeline, step
from zenml.config.resource_settings import ResourceSettings
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


@pipeline(dynamic=True, enable_cache=False)
def commanding(folder: str) -> None:
    """A command on the operator that hears of nothing."""
    command = CommandStep(["sh", "-c", f"touch {folder}/sleeps; exec sleep 600"], name="sleeps")
    command.with_options(step_operator=True)()


@pipeline(dynamic=True)
def calling(folder: str) -> None:
    """Calls a child whose command is on the operator."""
    commanding(folder)


@pipeline
def chained(folder: str, length: int = 3) -> None:
    """Steps on the operator one after the other."""
    rows: int = 41
    for number in range(length):
        rows = train.with_options(step_operator=True)(folder, rows, id=f"train_{number}")


@pipeline
def kinds(folder: str) -> None:
    """A chain of which the second step asks for more memory, and the first alone has a variable."""
    on_operator = train.with_options(step_operator=True)
    more = on_operator.with_options(settings={"resources": ResourceSettings(memory="2GiB")})
    rows = on_operator.with_options(environment={"USER_VARIABLE": "of the step"})(folder, 1, id="first")
    on_operator(folder, more(folder, rows, id="big"), id="last")


@pipeline
def ends_in_turns(folder: str) -> None:
    """Steps on the operator one after the other, each of which ends in another way before it succeeds."""
    again = StepRetryConfig(max_retries=1, delay=0, backoff=1)
    before = train.with_options(step_operator=True)(folder, 1, id="before")
    raises = fail_first.with_options(step_operator=True, retry=again)(folder, "raise", id="raises", after=before)
    killed = fail_first.with_options(step_operator=True, retry=again)(folder, "kill", id="killed", after=raises)
    struck = struck_first.with_options(step_operator=True, retry=again)
    limited = struck.with_options(settings={"step_operator": {"timeout": 15}})
    timeout = limited(folder, "timeout", id="timeout", after=killed)
    oom = struck(folder, "oom", id="oom", after=timeout)
    train.with_options(step_operator=True)(folder, oom, id="after")


@pipeline
def hangs_in_turns(folder: str) -> None:
    """Three steps on the operator, of which the second one waits for a file."""
    before = train.with_options(step_operator=True)(folder, 1, id="before")
    hangs = hang_first.with_options(step_operator=True)(folder, id="hangs", after=before)
    train.with_options(step_operator=True)(folder, hangs, id="later")


@pipeline
def broken_off(folder: str) -> None:
    """A step on the operator, one here that fails, and one on the operator that never begins."""
    before = train.with_options(step_operator=True)(folder, 1, id="before")
    train.with_options(step_operator=True)(folder, fail(folder, before), id="later")


@step(enable_cache=False)
def wait_here(folder: str) -> None:
    """Waits for a file, ``go``."""
    trace(folder, "begin")
    await_file(f"{folder}/go", 120)


@pipeline
def in_two_parts(folder: str) -> None:
    """A step on the operator, one here that waits for a file, and two on the operator. None needs another: ZenML's
    local orchestrator takes them by their names."""
    on_operator = train.with_options(step_operator=True)
    on_operator(folder, 1, id="a")
    wait_here(folder, id="b")
    on_operator(folder, 2, id="c")
    on_operator(folder, 3, id="d")
