"""Steps that print, to the very last moment."""

from __future__ import annotations

import sys

from zenml import pipeline, step
from zenml.config.retry_config import StepRetryConfig
from zenml.logger import get_logger


@step(enable_cache=False)
def says(number: int) -> int:
    for line in range(300):
        print(f"says {number}: {line}")
    get_logger(__name__).warning("says %s: a warning", number)
    print(f"says {number}: the last", file=sys.stderr)
    return number


@step(enable_cache=False)
def silent() -> None:
    print("says nothing")


@step(enable_cache=False)
def breaks() -> None:
    print("says: it breaks")
    raise RuntimeError("as told")


again = StepRetryConfig(max_retries=1, delay=0, backoff=1)


@pipeline(enable_cache=False)
def static(folder: str) -> None:
    says(2, id="second", after=says(1, id="first"))
    silent.with_options(enable_step_logs=False)()
    breaks.with_options(retry=again)()


@pipeline(dynamic=True, enable_cache=False)
def dynamic(folder: str) -> None:
    """One here, and the others in sandboxes of their own."""
    apart = says.with_options(runtime="isolated")
    says(1, id="first")
    apart(2, id="second")
    silent.with_options(enable_step_logs=False, runtime="isolated")()
    print("says of the function")
    breaks.with_options(retry=again, runtime="isolated")()
