"""A pipeline in which two steps fail twice, one of them with a GPU."""

from __future__ import annotations

from zenml import pipeline, step
from zenml.config.retry_config import StepRetryConfig

from bridge import ModalPrefectOrchestratorSettings

TWICE = StepRetryConfig(max_retries=1, delay=0, backoff=1)
GPU = ModalPrefectOrchestratorSettings(gpu="T4")


@step
def fine(folder: str) -> int:
    return 1


@step(retry=TWICE)
def breaks(folder: str, left: int) -> int:
    raise ValueError("as told")


@step(retry=TWICE)
def breaks_once(folder: str, left: int) -> int:
    from pathlib import Path

    if (Path(folder) / "broke").exists():
        return left
    (Path(folder) / "broke").touch()
    raise ValueError("as told")


@pipeline(enable_cache=False)
def eventful(folder: str) -> None:
    value = fine(folder)
    breaks.with_options(settings={"orchestrator": GPU})(folder, value, id="on_gpu")
    breaks(folder, value, id="on_cpu")


@pipeline(enable_cache=False)
def mended(folder: str) -> None:
    breaks_once(folder, fine(folder), id="again")


@pipeline(dynamic=True, enable_cache=False)
def decided(folder: str) -> None:
    """An inline step, and one that has sandboxes of its own: it fails in the first."""
    breaks_once.with_options(runtime="isolated")(folder, fine(folder), id="apart")
