"""What was seen of one run, by its steps' own code, by whoever struck it, by the loopback Modal and by both servers.

Plain data, standard library only. Times are seconds of ``time.time()`` on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ATTEMPT = " (attempt "
"""In the name of a task run of a dynamic pipeline's step, from its second step run on."""


@dataclass(frozen=True)
class Attempt:
    """One time that a step's own code ran."""

    number: int
    sandbox: str
    pid: int
    begin: float
    ended: float | None = None
    how: str | None = None
    """``end`` or ``fail``, as its last words say; None if it had none."""
    beside: tuple[int, ...] = ()
    """Processes of earlier attempts that were still alive when it began."""


@dataclass(frozen=True)
class Strike:
    """A fault, as it was carried out. ``running`` says whether the step's process was alive right before."""

    kind: str
    step: str
    attempt: int
    sandbox: str
    time: float
    running: bool
    refused: str = ""
    """Why it couldn't be done: ZenML doesn't stop a run that has failed."""


@dataclass(frozen=True)
class Sandbox:
    """One that the loopback made."""

    id: str
    step: str
    status: str
    created: float
    seconds: float

    @property
    def ended(self) -> float:
        """Not later than its end."""
        return self.created + self.seconds


@dataclass(frozen=True)
class TaskRun:
    """Prefect's record of a step, or of the pipeline."""

    state: str
    run_count: int
    message: str = ""


@dataclass(frozen=True)
class Seen:
    """All of it. ``step_runs`` has ZenML's statuses by step, in the order of their versions."""

    attempts: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)
    strikes: Sequence[Strike] = ()
    sandboxes: Sequence[Sandbox] = ()
    alive: Sequence[str] = ()
    """Sandboxes that lived on after the run."""
    run: str = ""
    flow_run: str = ""
    step_runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    task_runs: Mapping[str, TaskRun] = field(default_factory=dict)
    logs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By task run: its messages, in Prefect's order."""
    failed_without_flow: float | None = None
    """When going on was refused: the run had failed while its flow was dead. What then ran came to its end alone."""
    hung: str = ""
    """What didn't come to its end in time; "" if all did."""
    lives: int = 1
