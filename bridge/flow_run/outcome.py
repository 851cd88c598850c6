"""What happened to a step: the sandbox's end and ZenML's record, read together. Standard library only.

Neither of the two is the truth alone. A sandbox may exit with 0 although its step never reported, or with 1
although ZenML holds a successful step run; it may vanish before ZenML knew of it. :func:`judge` is the one
place that decides, and :class:`Cost` says what an end costs: the table in ``docs/semantics.md`` is this
module, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

TOKEN_REFUSED = 77
"""The exit code of a program in a sandbox to which ZenML's server doesn't listen any more."""


class End(str, Enum):
    """How a sandbox ended, as far as its runner can tell."""

    EXITED = "exited"
    """Its process ended by itself or by a signal from inside; ``exit_code`` says how."""
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    TERMINATED = "terminated"
    """Somebody ended it on purpose: this program, or a person in the dashboard."""
    EVICTED = "evicted"
    """The infrastructure took the machine back."""
    LOST = "lost"
    """It ended for a reason on the infrastructure's side, or nobody knows it any more."""
    NEVER_STARTED = "never started"
    """No process of it ever ran: its image wasn't pulled, its machine failed to come up."""


_INFRASTRUCTURE = frozenset({End.EVICTED, End.LOST, End.NEVER_STARTED})
_KILLED = frozenset({End.OUT_OF_MEMORY, End.TERMINATED, End.EVICTED, End.LOST})


@dataclass(frozen=True, slots=True)
class SandboxEnd:
    """The end of a sandbox. ``exit_code`` is the process's (negative or 128+n for a signal), if known.

    ``record`` is what ZenML answered the step's process when that told it of the step's end, where that was passed on.
    It is no part of how the sandbox ended.
    """

    end: End
    exit_code: int | None = None
    detail: str = ""
    record: StepRecord | None = field(default=None, compare=False)

    @property
    def is_infrastructure(self) -> bool:
        """Whether nothing that ran in it had a part in its end: that costs an infrastructure retry."""
        return self.end in _INFRASTRUCTURE

    @property
    def was_killed(self) -> bool:
        """Whether its process ended by somebody else's will: with its sandbox, or by a signal."""
        by_signal = self.exit_code is not None and not 0 <= self.exit_code <= 128
        return self.end in _KILLED or (self.end is End.EXITED and by_signal)

    def __str__(self) -> str:
        code = f" with exit code {self.exit_code}" if self.end is End.EXITED else ""
        return f"{self.end.value}{code}{': ' + self.detail if self.detail else ''}"


class Reported(str, Enum):
    """What ZenML says of a step's newest step run."""

    NOTHING = "nothing"
    """There is no step run."""
    RUNNING = "running"
    SUCCEEDED = "completed"
    CACHED = "cached"
    SKIPPED = "skipped"
    FAILED = "failed"
    RETRYING = "retrying"
    """Failed, and ZenML waits for another attempt."""
    STOPPED = "stopped"


SUCCESSFUL = frozenset({Reported.SUCCEEDED, Reported.CACHED, Reported.SKIPPED})


@dataclass(frozen=True, slots=True)
class StepRecord:
    """ZenML's record of a step's newest attempt. ``version`` counts the step runs from 1; 0 means none."""

    reported: Reported = Reported.NOTHING
    step_run_id: str | None = None
    version: int = 0
    exception: str | None = None


def answered(end: SandboxEnd, before: StepRecord) -> StepRecord | None:
    """ZenML's record of an attempt that succeeded, where its process has passed on ZenML's answer; None: ask ZenML.

    ``before`` is the record of the attempt before this one. Only a success is taken from it: it is final.
    """
    record = end.record
    if record is None or end.end is not End.EXITED or end.exit_code != 0 or record.reported not in SUCCESSFUL:
        return None
    return record if record.step_run_id is not None and record.version > before.version else None


class Cost(str, Enum):
    """What an end costs the step."""

    NOTHING = "nothing"
    OWN_RETRY = "one of the step's own retries"
    INFRASTRUCTURE_RETRY = "one infrastructure retry"
    EVERYTHING = "all retries: another attempt would end the same way"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One failure, said so that somebody can act on it."""

    what: str
    detail: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return " ".join(part.rstrip(".") + "." for part in (self.what, self.detail, self.fix) if part)


Subject = Literal["step", "pipeline"]
"""What a sandbox was for: one step at a time, or the whole pipeline."""


class Verdict(str, Enum):
    """What became of an attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one attempt of a step, what it costs, and why."""

    verdict: Verdict
    cost: Cost
    record: StepRecord
    diagnosis: Diagnosis | None = None
    needs_explaining: bool = False
    """Whether ZenML knows the failure, but not what came to it: the step itself has reported another."""

    @property
    def needs_step_run(self) -> bool:
        """Whether ZenML still has to be told of this end: it has no finished step run for it."""
        return self.verdict is not Verdict.SUCCEEDED and self.record.reported in (
            Reported.NOTHING,
            Reported.RUNNING,
        )


def judge(
    end: SandboxEnd,
    record: StepRecord,
    *,
    stop_requested: bool = False,
    last_output: Callable[[], str] = str,
    reports: bool = True,
) -> Outcome:
    """Decide what became of an attempt.

    Args:
        end: How its sandbox ended.
        record: ZenML's record of the step, read after that end.
        stop_requested: Whether this program ended the sandbox, for a cancelled run or a failed sibling.
        last_output: Gives what the sandbox wrote last: often the exception. Asked only where nothing else tells it.
        reports: Whether the sandbox's program tells ZenML how it ended; else its exit code is all there is.
    """
    if record.reported in SUCCESSFUL:
        return Outcome(Verdict.SUCCEEDED, Cost.NOTHING, record)
    # One that failed for good before the stop reached it stays failed, as it is in ZenML.
    if record.reported is Reported.STOPPED or (stop_requested and record.reported is not Reported.FAILED):
        return Outcome(Verdict.STOPPED, Cost.NOTHING, record, Diagnosis("The step was stopped"))
    if not reports and end.end is End.EXITED and end.exit_code == 0:
        return Outcome(Verdict.SUCCEEDED, Cost.NOTHING, record)
    if record.reported in (Reported.FAILED, Reported.RETRYING):
        # SIGTERM comes first when its time is over, and ZenML's handler calls that an exception of the step.
        timed_out = end.end is End.TIMED_OUT
        diagnosis = _diagnose(end, record) if timed_out else _reported_failure(record, last_output)
        return Outcome(Verdict.FAILED, Cost.OWN_RETRY, record, diagnosis, needs_explaining=timed_out)
    if reports and end.end is End.EXITED and end.exit_code == TOKEN_REFUSED:
        # The token of another attempt would be as old.
        return Outcome(Verdict.FAILED, Cost.EVERYTHING, record, _cut_off("step"))
    if end.is_infrastructure:
        return Outcome(Verdict.LOST, Cost.INFRASTRUCTURE_RETRY, record, _diagnose(end, record))
    return Outcome(Verdict.FAILED, Cost.OWN_RETRY, record, _diagnose(end, record, last_output))


def refused(detail: str, fix: str = "") -> Outcome:
    """The outcome of a sandbox that Modal refuses to make: the same request would be refused again."""
    diagnosis = Diagnosis("The sandbox was refused", detail, fix)
    return Outcome(Verdict.FAILED, Cost.EVERYTHING, StepRecord(), diagnosis)


def stopped_after(failure: Outcome, record: StepRecord) -> Outcome:
    """The outcome of a failed attempt whose step ZenML calls stopped, as ``record`` says: it won't be tried again."""
    diagnosis = Diagnosis("The step was stopped after it had failed", str(failure.diagnosis or ""))
    return Outcome(Verdict.STOPPED, Cost.NOTHING, record, diagnosis)


def diagnose(end: SandboxEnd, record: StepRecord | None = None, *, of: Subject = "step") -> Diagnosis:
    """Say what came to a sandbox that ended under its step, or under the pipeline that it was for.

    ``record`` is ZenML's of a step that ran in it.
    """
    if end.end is End.EXITED and end.exit_code == TOKEN_REFUSED:
        return _cut_off(of)
    return _diagnose(end, record or StepRecord(), of=of)


def _cut_off(of: Subject) -> Diagnosis:
    return Diagnosis(
        f"The {of} was cut off: ZenML's server took the token of its sandbox no longer",
        "A run's token dies with it, by default one hour after a step has failed, also where other steps go on; "
        "nothing that they do can be recorded then",
        "Have `ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY` set on ZenML's server: the seconds that they may take, -1 for "
        "ever",
    )


def _reported_failure(record: StepRecord, last_output: Callable[[], str]) -> Diagnosis:
    return Diagnosis("The step raised an exception", record.exception or last_output(), "Its log has the traceback")


def _diagnose(
    end: SandboxEnd, record: StepRecord, last_output: Callable[[], str] = str, *, of: Subject = "step"
) -> Diagnosis:
    detail = end.detail or (last_output() if end.end is End.EXITED else "")
    if end.end is End.TIMED_OUT:
        return Diagnosis(f"The {of} ran into its timeout", detail, f"Raise `timeout` in the settings of the {of}")
    if end.end is End.OUT_OF_MEMORY:
        return Diagnosis(
            f"The {of} ran out of memory",
            detail,
            f"Ask for more with `ResourceSettings(memory=...)` on the {of}",
        )
    if end.end is End.TERMINATED:
        return Diagnosis("The sandbox was terminated from outside this run", detail, "See who stopped it on Modal")
    if end.end is End.EVICTED:
        return Diagnosis("The sandbox was evicted", detail, "Modal took its machine back; it is tried again")
    if end.end is End.LOST:
        return Diagnosis("The sandbox was lost", detail, "It ended on Modal's side; it is tried again")
    if end.end is End.NEVER_STARTED:
        return Diagnosis("The sandbox never started", detail, "Check that its image can be pulled and has Python")
    code = end.exit_code
    if code == 0:
        return Diagnosis(
            "The sandbox exited with 0, but ZenML has no successful step run",
            detail,
            "Does the step's code end the process, with `os._exit` or `sys.exit`?",
        )
    if code is not None and end.was_killed:
        signal = -code if code < 0 else code - 128
        hint = "Signal 9 is how the kernel ends a process that is out of memory" if signal == 9 else ""
        return Diagnosis(f"The {of}'s process was killed by signal {signal}", detail, hint)
    if record.reported is Reported.NOTHING:
        unknown = "knew of the step" if of == "step" else "had an end of every step"
        return Diagnosis(
            f"The sandbox exited with {code} before ZenML {unknown}",
            detail,
            "Its log says why: often a package that the image lacks, or a ZenML server it can't reach",
        )
    reporter = "it" if of == "step" else "the step"
    return Diagnosis(f"The {of}'s process exited with {code} before {reporter} reported", detail, "Its log says why")
