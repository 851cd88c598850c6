"""Imports Prefect and the runner's SDK while ZenML prepares a run, which is mostly waiting for its server.

They take more than a second, and nothing of them is needed before ZenML submits. Not when :mod:`bridge` is
imported: sandboxes and most of ZenML's commands need neither.
"""

from __future__ import annotations

import functools
import gc
import importlib
from concurrent.futures import Future, ThreadPoolExecutor


@functools.cache
def imports(runner: str) -> Future[None]:
    """Begin with the imports of a submission, once a process; the result is there when they are done.

    Wait for it before importing any of them: two threads in one import of a package that imports itself in circles
    can see half of it.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="zenml-modal-prefect-imports")
    try:
        return pool.submit(
            _import, ("bridge.submitting.submission", "bridge.flow_run.carrying_out", f"bridge.runners.{runner}")
        )
    finally:
        pool.shutdown(wait=False)


def _import(modules: tuple[str, ...]) -> None:
    # Imports make objects that stay: looking through them for garbage again and again is a sixth of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        if collecting:
            gc.enable()
