"""The processes in which the flow of one run lives, one after the other. Forked from one that has imported all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.chaos.yard import PROJECT, STACK_CODE

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.chaos.first_life"])


def _prepare(environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(STACK_CODE), str(PROJECT)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    os.chdir(PROJECT)
    log = os.open(f"{folder}/flow.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    from zenml.utils import source_utils

    # A forked process has no main module that ZenML could take for the user's.
    source_utils.set_custom_source_root(str(PROJECT))


def _begin(environment: dict[str, str], folder: str, options: dict[str, Any], arguments: dict[str, Any]) -> None:
    _prepare(environment, folder)
    from tests.chaos import first_life

    first_life.call(folder, options, arguments)


def _go_on(environment: dict[str, str], folder: str, run_id: UUID, more: list[str]) -> None:
    _prepare(environment, folder)
    from bridge.commands.resume import resume

    resume([str(run_id), "--here", *more], standalone_mode=True)


class Flow:
    """The flow of one run."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._process: ForkServerProcess | None = None
        self.lives = 0

    def begin(self, options: dict[str, Any], arguments: dict[str, Any]) -> None:
        """Call the pipeline, as a user's script does."""
        self._start(_begin, options, arguments)

    def go_on(self, run_id: UUID, *, sure: bool = False) -> None:
        """Type `modal-prefect resume`; ``sure`` that the process is gone, also where nothing tells so."""
        self._start(_go_on, run_id, ["--yes"] if sure else [])

    def _start(self, function: Any, *arguments: Any) -> None:
        self.lives += 1
        self._process = _forks.Process(
            target=function, args=(self._environment, str(self._folder), *arguments), daemon=True
        )
        self._process.start()

    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Signal it, if it is alive."""
        if self._process is not None and self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL; nothing if there is no process."""
        if self._process is not None:
            self._process.kill()
            self._process.join(20)

    @property
    def log(self) -> str:
        """What all its processes have printed."""
        path = self._folder / "flow.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def last_words(self) -> str:
        """The last line of that."""
        return "".join(self.log.splitlines()[-1:])
