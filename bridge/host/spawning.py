"""Attempts as programs of their own, where forking isn't possible: slow to start, safe everywhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path

import bridge
from bridge import names
from bridge.host.attempt import Attempt, StepCommand, Streams


class _Spawned:
    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return code

    def signal(self, number: int) -> None:
        if self._process.returncode is None:
            self._signal_group(number)

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            return


class SpawnHost:
    """Starts a new interpreter for each attempt; a :class:`bridge.host.attempt.StepHost`.

    The attempts die with this process, by :mod:`bridge.host.lifeline`.

    Args:
        command: Which of :mod:`bridge.host`'s commands runs one.
    """

    def __init__(self, command: StepCommand = "step") -> None:
        self._command = command
        self._lifeline, self._held = os.pipe()

    async def start(self, attempt: Attempt, streams: Streams) -> _Spawned:
        """Start ``python -m bridge.host`` with the command for an attempt."""
        os.makedirs(attempt.work_dir, exist_ok=True)
        arguments = [f"--snapshot-id={attempt.snapshot_id}", f"--step={attempt.step}"]
        if attempt.step_run_id is not None:
            arguments.append(f"--step-run-id={attempt.step_run_id}")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bridge.host",
            self._command,
            *arguments,
            f"--lifeline={self._lifeline}",
            pass_fds=(self._lifeline, *streams.reading),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=streams.stdout,
            stderr=streams.stderr,
            env=_environment(attempt),
            start_new_session=True,
        )
        return _Spawned(process)

    async def close(self) -> None:
        """Let the lifeline go."""
        os.close(self._lifeline)
        os.close(self._held)


def _environment(attempt: Attempt) -> dict[str, str]:
    here = str(Path(bridge.__file__).parents[1])
    environment = {
        **os.environ,
        "ZENML_CONFIG_PATH": _own_configuration(attempt.work_dir),
        "ZENML_LOCAL_STORES_PATH": _local_stores(),
        **attempt.environment,
    }
    # Last: the attempt's own may be the image's, which knows nothing of where this package is.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
    if names.ENV_WORK_DIR in os.environ:
        environment[names.ENV_WORK_DIR] = attempt.work_dir
    return environment


def _own_configuration(work_dir: str) -> str:
    """Copy ZenML's configuration for one process: two that share a folder read it while the other writes."""
    from zenml.config.global_config import GlobalConfiguration

    theirs = Path(GlobalConfiguration().config_directory)
    ours = Path(work_dir) / ".zenml"
    ours.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "credentials.yaml"):
        if (theirs / name).exists():
            shutil.copy2(theirs / name, ours / name)
    return str(ours)


def _local_stores() -> str:
    from zenml.config.global_config import GlobalConfiguration

    return str(GlobalConfiguration().local_stores_path)
