"""One attempt of a step as the step hosts see it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

StepCommand = Literal["step", "operated"]
"""As which of the commands of :mod:`bridge.host` an attempt is run."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What to run.

    ``step_run_id`` names a RUNNING step run, whose process is dead, that is to go on. ``environment`` is added
    to what the host has; it may hold secrets, so it is never shown. ``work_dir`` is a folder of the attempt's
    own, made by whoever runs it. ``passed_on`` is the folder of :class:`bridge.host.passed_on.PassedOn`; a process
    that isn't a fork of the host's makes no use of it.
    """

    snapshot_id: str
    step: str
    work_dir: str
    step_run_id: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    passed_on: str | None = None

    @property
    def end_file(self) -> str:
        """Where its process passes on what ZenML answered to its end."""
        return f"{self.work_dir}.end"


@dataclass(frozen=True, slots=True)
class Streams:
    """Where an attempt writes to: the writing ends of two pipes, as file descriptors, and their ``reading`` ends.

    The attempt's process keeps the reading ends open and never reads. Else it would find the pipes broken in the
    moment in which their reader, the host, is killed, and before it is killed itself: the step would end with a
    ``BrokenPipeError`` of its own where its sandbox was lost.
    """

    stdout: int
    stderr: int
    reading: tuple[int, int]


class StepProcess(Protocol):
    """A process that runs one attempt, leader of a process group of its own."""

    @property
    def pid(self) -> int:
        """Its process id."""

    async def wait(self) -> int:
        """Wait for its end and return its exit code, negative for a signal. What is left of its group is
        killed by then. May be called by many."""

    def signal(self, number: int) -> None:
        """Send a signal to its process group. Does nothing once it has ended."""


class StepHost(Protocol):
    """Starts attempts and tells how they ended. One event loop."""

    async def start(self, attempt: Attempt, streams: Streams) -> StepProcess:
        """Start an attempt whose output goes to ``streams``, whose file descriptors stay the caller's."""

    async def close(self) -> None:
        """Let the host go; every attempt has to have ended."""
