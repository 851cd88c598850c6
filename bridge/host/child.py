"""What a forked child does: it becomes the process of one attempt. Imports ZenML."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import threading
from functools import partial
from typing import NoReturn
from uuid import UUID

from zenml.stack import Stack
from zenml.utils.env_utils import get_runtime_environment, get_runtime_secret_environment

from bridge import names
from bridge.host import orphan
from bridge.host.attempt import Attempt, StepCommand
from bridge.host.entrypoint import StepEntrypoint, arguments_for, run_attempt
from bridge.host.operated import OperatedEntrypoint
from bridge.host.preload import Loaded
from bridge.host.run_of_step import Fork

_logger = logging.getLogger(__name__)


def run(attempt: Attempt, loaded: Loaded, command: StepCommand = "step") -> NoReturn:
    """Run an attempt in this process, a fresh fork, as the command does, and end it."""
    gc.enable()
    code = 1
    try:
        code = _run(attempt, loaded, command)
    except BaseException:
        _logger.exception("The step's process broke.")
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """End this process as the interpreter does, but for taking thousands of modules apart: that costs 0.1 s.

    The same calls in the same order as CPython's own finalization (``Py_FinalizeEx``): threads that aren't
    daemons are waited for, exit handlers run, output is flushed.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run(attempt: Attempt, loaded: Loaded, command: StepCommand) -> int:
    _say_lines_at_once()
    _reseed()
    # What ps and a step's own tracebacks of argv would show otherwise is the host's command line.
    arguments = arguments_for(attempt.snapshot_id, attempt.step, attempt.step_run_id)
    sys.argv = ["bridge.host", command, *arguments]
    of_a_flow = partial(StepEntrypoint, fork=Fork(loaded.run, attempt))
    entrypoint = OperatedEntrypoint if command == "operated" else of_a_flow
    os.environ.update(attempt.environment)
    if loaded.stack is not None:
        # ZenML sets these around the call of the step's function; a module that reads them when it is
        # imported finds them here, as it does in a sandbox of its own.
        os.environ.update(_step_environment(attempt.step, loaded, loaded.stack))
    if names.ENV_WORK_DIR in os.environ or entrypoint(arguments, loaded.snapshot).should_download_code:
        os.environ[names.ENV_WORK_DIR] = attempt.work_dir
    if attempt.step_run_id is not None:
        orphan.watch_step_run(UUID(attempt.step_run_id))  # where its caller gave it a lease
    return run_attempt(arguments, loaded.snapshot, entrypoint)


def _step_environment(step: str, loaded: Loaded, stack: Stack) -> dict[str, str]:
    config = loaded.snapshot.step_configurations[step].config
    return {
        **get_runtime_environment(config, stack),
        **get_runtime_secret_environment(config, stack),
    }


def _say_lines_at_once() -> None:
    # They were made for the host's output; a pipe is buffered by default.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)


def _reseed() -> None:
    """Give this process random numbers of its own. ``random`` does so by itself after a fork, NumPy doesn't."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
