"""The truth about a step: every end of a sandbox with everything that ZenML may say of the step run."""

from __future__ import annotations

from itertools import product

import pytest

from bridge.flow_run.outcome import (
    SUCCESSFUL,
    TOKEN_REFUSED,
    Cost,
    End,
    Reported,
    SandboxEnd,
    StepRecord,
    Verdict,
    answered,
    diagnose,
    judge,
    refused,
)

SUCCESS = (Verdict.SUCCEEDED, Cost.NOTHING)
STOPPED = (Verdict.STOPPED, Cost.NOTHING)
OWN = (Verdict.FAILED, Cost.OWN_RETRY)
LOST = (Verdict.LOST, Cost.INFRASTRUCTURE_RETRY)

# What ZenML says decides where it says how the step ended; where it doesn't, the sandbox's end does.
BY_REPORT = {
    Reported.SUCCEEDED: SUCCESS,
    Reported.CACHED: SUCCESS,
    Reported.SKIPPED: SUCCESS,
    Reported.FAILED: OWN,
    Reported.RETRYING: OWN,
    Reported.STOPPED: STOPPED,
}
BY_END = {
    End.EXITED: OWN,
    End.TIMED_OUT: OWN,
    End.OUT_OF_MEMORY: OWN,
    End.TERMINATED: OWN,
    End.EVICTED: LOST,
    End.LOST: LOST,
    End.NEVER_STARTED: LOST,
}


def test_the_tables_are_whole() -> None:
    assert set(BY_END) == set(End)
    assert set(BY_REPORT) | {Reported.NOTHING, Reported.RUNNING} == set(Reported)


@pytest.mark.parametrize("code", [0, 1, 137, -9, None])
@pytest.mark.parametrize(("end", "reported"), list(product(End, Reported)))
def test_every_end_with_every_report(end: End, reported: Reported, code: int | None) -> None:
    outcome = judge(SandboxEnd(end, code), StepRecord(reported, "id", 1))
    assert (outcome.verdict, outcome.cost) == (BY_REPORT.get(reported) or BY_END[end])
    assert (outcome.diagnosis is None) == (outcome.verdict is Verdict.SUCCEEDED)
    unfinished = reported in (Reported.NOTHING, Reported.RUNNING)
    assert outcome.needs_step_run == (unfinished and outcome.verdict is not Verdict.SUCCEEDED)


@pytest.mark.parametrize(("end", "reported"), list(product(End, Reported)))
def test_a_stop_that_was_asked_for_is_no_failure(end: End, reported: Reported) -> None:
    """But a step that was done before the stop reached it stays done, and one that had failed for good stays failed."""
    outcome = judge(SandboxEnd(end, 137), StepRecord(reported, "id", 1), stop_requested=True)
    ended_before = reported in (*SUCCESSFUL, Reported.FAILED)
    assert (outcome.verdict, outcome.cost) == (BY_REPORT[reported] if ended_before else STOPPED)


@pytest.mark.parametrize(
    ("end", "record", "said"),
    [
        (SandboxEnd(End.EXITED, 1), StepRecord(Reported.FAILED, "i", 1, "KeyError: 'a'"), ["raised", "KeyError: 'a'"]),
        (SandboxEnd(End.EXITED, 0), StepRecord(), ["exited with 0", "os._exit"]),
        (SandboxEnd(End.EXITED, 3), StepRecord(), ["exited with 3", "before ZenML knew", "package"]),
        (SandboxEnd(End.EXITED, 3), StepRecord(Reported.RUNNING, "i", 1), ["exited with 3", "before it reported"]),
        (SandboxEnd(End.EXITED, -9), StepRecord(Reported.RUNNING, "i", 1), ["signal 9", "out of memory"]),
        (SandboxEnd(End.EXITED, 137), StepRecord(Reported.RUNNING, "i", 1), ["signal 9", "out of memory"]),
        (SandboxEnd(End.EXITED, 139), StepRecord(), ["signal 11"]),
        (SandboxEnd(End.TIMED_OUT, None, "after 60 s"), StepRecord(), ["timeout", "after 60 s", "Raise `timeout`"]),
        (
            SandboxEnd(End.TIMED_OUT, 1, "after 60 s"),
            StepRecord(Reported.FAILED, "i", 1, "RunInterruptedException: The execution was interrupted."),
            ["timeout", "after 60 s", "Raise `timeout`"],
        ),
        (SandboxEnd(End.OUT_OF_MEMORY), StepRecord(), ["out of memory", "ResourceSettings(memory=...)"]),
        (SandboxEnd(End.TERMINATED), StepRecord(), ["terminated from outside", "who stopped it"]),
        (SandboxEnd(End.EVICTED), StepRecord(), ["evicted", "tried again"]),
        (SandboxEnd(End.LOST), StepRecord(), ["lost", "tried again"]),
        (SandboxEnd(End.NEVER_STARTED), StepRecord(), ["never started", "image"]),
    ],
)
def test_a_diagnosis_says_what_and_what_to_do(end: SandboxEnd, record: StepRecord, said: list[str]) -> None:
    diagnosis = str(judge(end, record).diagnosis)
    for fragment in said:
        assert fragment in diagnosis
    assert ".." not in diagnosis.replace("...", "")


@pytest.mark.parametrize(
    ("end", "reported", "said"),
    [
        (
            SandboxEnd(End.TIMED_OUT, None, "after 60 s"),
            Reported.RUNNING,
            "The pipeline ran into its timeout. after 60 s. Raise `timeout` in the settings of the pipeline.",
        ),
        (SandboxEnd(End.OUT_OF_MEMORY), Reported.RUNNING, "The pipeline ran out of memory. Ask for more with"),
        (SandboxEnd(End.EXITED, 137), Reported.NOTHING, "The pipeline's process was killed by signal 9."),
        (SandboxEnd(End.EXITED, 3), Reported.NOTHING, "The sandbox exited with 3 before ZenML had an end of every"),
        (SandboxEnd(End.EXITED, 3), Reported.RUNNING, "The pipeline's process exited with 3 before the step reported."),
        (SandboxEnd(End.EXITED, TOKEN_REFUSED), Reported.RUNNING, "The pipeline was cut off: ZenML's server"),
        (SandboxEnd(End.EVICTED), Reported.NOTHING, "The sandbox was evicted."),
    ],
)
def test_the_sandbox_of_a_whole_pipeline_is_no_step_s(end: SandboxEnd, reported: Reported, said: str) -> None:
    assert str(diagnose(end, StepRecord(reported, "i", 1), of="pipeline")).startswith(said)


@pytest.mark.parametrize(("end", "code"), [*((end, None) for end in End), (End.EXITED, 1), (End.EXITED, TOKEN_REFUSED)])
def test_what_came_to_a_sandbox_is_what_is_judged_of_its_step(end: End, code: int | None) -> None:
    for record in (StepRecord(), StepRecord(Reported.RUNNING, "i", 1)):
        assert diagnose(SandboxEnd(end, code), record) == judge(SandboxEnd(end, code), record).diagnosis
    assert SandboxEnd(end, code).is_infrastructure is (BY_END[end] == LOST)


@pytest.mark.parametrize("reported", [Reported.FAILED, Reported.RETRYING])
def test_zenml_is_told_what_came_to_a_step_that_could_only_say_that_it_was_interrupted(reported: Reported) -> None:
    record = StepRecord(reported, "i", 1, "RunInterruptedException: The execution was interrupted.")
    timed_out = judge(SandboxEnd(End.TIMED_OUT, 1, "after 60 s"), record)
    assert (timed_out.needs_explaining, timed_out.needs_step_run) == (True, False)
    assert not judge(SandboxEnd(End.EXITED, 1), record).needs_explaining, "its own exception is all there is to say"
    unreported = judge(SandboxEnd(End.TIMED_OUT), StepRecord(Reported.RUNNING, "i", 1))
    assert (unreported.needs_explaining, unreported.needs_step_run) == (False, True)


def test_the_last_output_tells_what_nothing_else_does() -> None:
    last = "ModuleNotFoundError: No module named 'torch'"
    assert last in str(judge(SandboxEnd(End.EXITED, 1), StepRecord(), last_output=lambda: last).diagnosis)
    reported = StepRecord(Reported.FAILED, "i", 1)
    assert last in str(judge(SandboxEnd(End.EXITED, 1), reported, last_output=lambda: last).diagnosis)
    assert last not in str(judge(SandboxEnd(End.EVICTED), StepRecord(), last_output=lambda: last).diagnosis)


@pytest.mark.parametrize(
    ("end", "record"),
    [
        (SandboxEnd(End.EXITED, 0), StepRecord(Reported.SUCCEEDED, "i", 1)),
        (SandboxEnd(End.EXITED, 1), StepRecord(Reported.STOPPED, "i", 1)),
        (SandboxEnd(End.EXITED, 1), StepRecord(Reported.FAILED, "i", 1, "ValueError: no")),
        (SandboxEnd(End.OUT_OF_MEMORY, 137, "16 GiB"), StepRecord(Reported.RUNNING, "i", 1)),
    ],
    ids=["succeeded", "stopped", "reported", "said by its runner"],
)
def test_the_last_output_is_not_looked_through_where_something_else_tells(end: SandboxEnd, record: StepRecord) -> None:
    def asked() -> str:
        raise AssertionError("looked through")

    judge(end, record, last_output=asked)


@pytest.mark.parametrize("reported", [Reported.NOTHING, Reported.RUNNING])
def test_a_step_whose_token_has_died_is_not_tried_again(reported: Reported) -> None:
    """Both sides are told which variable of ZenML's server would have let it go on."""
    record = StepRecord(reported, "id", 1)
    outcome = judge(SandboxEnd(End.EXITED, TOKEN_REFUSED), record, last_output=lambda: "whatever")
    assert (outcome.verdict, outcome.cost, outcome.needs_step_run) == (Verdict.FAILED, Cost.EVERYTHING, True)
    assert "`ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY`" in str(outcome.diagnosis)
    of_command = judge(SandboxEnd(End.EXITED, TOKEN_REFUSED), record, reports=False)
    assert of_command.cost is Cost.OWN_RETRY, "a command may exit with what it likes"


def test_a_refused_sandbox_is_not_tried_again() -> None:
    outcome = refused("no such secret: hf", "Create it")
    assert (outcome.verdict, outcome.cost, outcome.needs_step_run) == (Verdict.FAILED, Cost.EVERYTHING, True)
    assert str(outcome.diagnosis) == "The sandbox was refused. no such secret: hf. Create it."


def test_an_end_prints() -> None:
    assert str(SandboxEnd(End.EXITED, 3)) == "exited with exit code 3"
    assert str(SandboxEnd(End.TIMED_OUT, 124, "after 5 s")) == "timed out: after 5 s"


@pytest.mark.parametrize("reported", sorted(SUCCESSFUL))
def test_a_success_that_zenml_has_answered_need_not_be_asked_for(reported: Reported) -> None:
    record = StepRecord(reported, "id", 2)
    assert answered(SandboxEnd(End.EXITED, 0, record=record), StepRecord(Reported.RETRYING, "one before", 1)) is record


@pytest.mark.parametrize(
    "end",
    [
        SandboxEnd(End.EXITED, 0),
        *(
            SandboxEnd(End.EXITED, 0, record=StepRecord(other, "id", 2))
            for other in Reported
            if other not in SUCCESSFUL
        ),
        SandboxEnd(End.EXITED, 0, record=StepRecord(Reported.SUCCEEDED, "id", 1)),
        SandboxEnd(End.EXITED, 0, record=StepRecord(Reported.SUCCEEDED, None, 2)),
        SandboxEnd(End.EXITED, 1, record=StepRecord(Reported.SUCCEEDED, "id", 2)),
        *(
            SandboxEnd(other, 0, record=StepRecord(Reported.SUCCEEDED, "id", 2))
            for other in End
            if other is not End.EXITED
        ),
    ],
)
def test_of_every_other_end_zenml_is_asked(end: SandboxEnd) -> None:
    assert answered(end, StepRecord(Reported.RETRYING, "one before", 1)) is None
