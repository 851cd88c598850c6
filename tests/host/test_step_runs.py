"""What ZenML is told, and what it makes of it, against a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.conftest import Job, Zen


def call(job: Job, function: str, **arguments: object):
    return job.zen.ask("call", module="step_run_calls", function=function, arguments=arguments)


@pytest.fixture
def job(zen: Zen, tmp_path: Path) -> Job:
    """A run whose step ``fail_first`` may be tried three times."""
    return zen.submit("retried", tmp_path, retries=2)


def test_a_step_without_step_run_has_no_record(job: Job) -> None:
    assert call(job, "latest", run=job.run, steps=["fail_first", "after"]) == {}


def test_an_overview_of_the_steps_that_are_asked_about_alone(job: Job) -> None:
    for step in ("fail_first", "after"):
        call(job, "start", run=job.run, step=step)
    both = {"fail_first": "running", "after": "running"}
    assert call(job, "overview", run=job.run, steps=None) == both
    assert call(job, "overview", run=job.run, steps=["after", "nobody"]) == {"after": "running"}
    assert call(job, "overview", run=job.run, steps=[]) == {}
    more_than_fit = ["after", *(f"{number:0100}" for number in range(50))]
    assert call(job, "overview", run=job.run, steps=more_than_fit) == both


def test_a_failure_that_zenml_never_heard_of_counts_as_an_attempt(job: Job) -> None:
    for attempt, expected in enumerate(["retrying", "retrying", "failed"], start=1):
        call(job, "record_failure", run=job.run, step="fail_first", what=f"No machine {attempt}")
        if attempt < 3:
            # What an unfinished attempt leaves; the next failure is that of a new one.
            record = call(job, "latest", run=job.run, steps=["fail_first"])["fail_first"]
            assert record[:3] == [expected, attempt, f"No machine {attempt}."]
    assert job.statuses() == ("failed", {"fail_first": ["retried", "retried", "failed"]})


def test_a_step_run_too_many_isn_t_made(job: Job) -> None:
    for attempt in range(4):
        call(job, "record_failure", run=job.run, step="fail_first", what=f"{attempt}")
    assert job.statuses()[1] == {"fail_first": ["retried", "retried", "failed"]}


def test_a_step_run_left_running_is_failed_with_its_diagnosis(job: Job) -> None:
    step_run = call(job, "start", run=job.run, step="fail_first")
    call(job, "record_failure", run=job.run, step="fail_first", what="Killed")
    record = call(job, "latest", run=job.run, steps=["fail_first"])["fail_first"]
    assert record == ["retrying", 1, "Killed.", step_run]


def test_a_last_attempt_that_zenml_hears_of_too_late_is_the_one_that_failed(job: Job) -> None:
    """Its process is dead; its request was carried out after ZenML was asked what it knows of the step."""
    for attempt in (1, 2):
        call(job, "record_failure", run=job.run, step="fail_first", what=f"{attempt}")
    step_run = call(job, "start", run=job.run, step="fail_first")
    call(job, "record_failure", run=job.run, step="fail_first", what="Out of time", was_read=False)
    record = call(job, "latest", run=job.run, steps=["fail_first"])["fail_first"]
    assert record == ["failed", 3, "Out of time.", step_run]


def test_a_failure_that_the_step_reported_is_explained_above_its_own_traceback(job: Job) -> None:
    step_run = call(job, "start", run=job.run, step="fail_first")
    call(job, "interrupted", step_run=step_run)
    call(job, "explain_failure", step_run=step_run, what="Out of time")
    said = call(job, "exception", step_run=step_run)
    assert said == ["Out of time.", "Out of time.\n\nTraceback: interrupted", 7]
    assert call(job, "latest", run=job.run, steps=["fail_first"])["fail_first"][:3] == ["retrying", 1, "Out of time."]


def test_a_failure_after_success_changes_nothing(job: Job) -> None:
    call(job, "complete", step_run=call(job, "start", run=job.run, step="fail_first"))
    call(job, "record_failure", run=job.run, step="fail_first", what="Too late")
    assert call(job, "latest", run=job.run, steps=["fail_first"])["fail_first"][0] == "completed"


def test_retries_that_won_t_happen_are_closed(job: Job) -> None:
    call(job, "record_failure", run=job.run, step="fail_first", what="First")
    call(job, "close_retries", run=job.run, step="fail_first")
    assert job.statuses() == ("failed", {"fail_first": ["retried", "retried", "failed"]})


def test_retries_of_a_stopping_run_are_stopped(job: Job) -> None:
    call(job, "record_failure", run=job.run, step="fail_first", what="First")
    job.zen.ask("set_run_status", run=job.run, status="stopping")
    call(job, "close_retries", run=job.run, step="fail_first")
    assert job.statuses() == ("stopped", {"fail_first": ["stopped"]})


def test_retries_in_a_failed_run_are_stopped(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("abandoned", tmp_path, options={"execution_mode": "fail_fast"})
    call(job, "record_failure", run=job.run, step="again", what="First")
    call(job, "complete", step_run=call(job, "start", run=job.run, step="slow"))
    call(job, "record_failure", run=job.run, step="bad", what="Dead")
    call(job, "close_retries", run=job.run, step="again")
    assert job.statuses() == ("failed", {"again": ["stopped"], "slow": ["completed"], "bad": ["failed"]})


def test_retries_in_a_failed_run_that_goes_on_are_failed(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("abandoned", tmp_path, options={"execution_mode": "continue_on_failure"})
    call(job, "record_failure", run=job.run, step="again", what="First")
    call(job, "complete", step_run=call(job, "start", run=job.run, step="slow"))
    call(job, "record_failure", run=job.run, step="bad", what="Dead")
    call(job, "close_retries", run=job.run, step="again")
    assert job.statuses()[1]["again"] == ["retried", "retried", "retried", "failed"]


def test_one_that_was_stopped_in_such_a_run_is_stopped(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("abandoned", tmp_path, options={"execution_mode": "continue_on_failure"})
    call(job, "record_failure", run=job.run, step="again", what="First")
    slow = call(job, "start", run=job.run, step="slow")
    call(job, "complete", step_run=slow)
    call(job, "record_failure", run=job.run, step="bad", what="Dead")
    call(job, "stop_retrying", run=job.run, step="again")
    call(job, "stop_retrying", run=job.run, step="bad")
    assert job.statuses()[1] == {"again": ["stopped"], "slow": ["completed"], "bad": ["failed"]}


def test_closing_leaves_every_other_step_alone(job: Job) -> None:
    call(job, "close_retries", run=job.run, step="fail_first")
    assert job.statuses()[1] == {}
    call(job, "start", run=job.run, step="fail_first")
    call(job, "close_retries", run=job.run, step="fail_first")
    assert job.statuses()[1] == {"fail_first": ["running"]}


def test_a_running_step_run_is_stopped_once(job: Job) -> None:
    step_run = call(job, "start", run=job.run, step="fail_first")
    call(job, "record_stopped", step_run=step_run)
    call(job, "record_stopped", step_run=step_run)
    assert job.statuses()[1] == {"fail_first": ["stopped"]}


@pytest.mark.parametrize(("pipeline", "step"), [("retried", "fail_first"), ("hanging", "hung")])
def test_a_step_run_that_lost_its_place_is_stopped_with_its_run(
    zen: Zen, tmp_path: Path, pipeline: str, step: str
) -> None:
    """ZenML lets it be cancelled only, whether or not it could be tried again."""
    job = zen.submit(pipeline, tmp_path, **({"retries": 2} if pipeline == "retried" else {}))
    step_run = call(job, "start", run=job.run, step=step)
    call(job, "lose_its_place", step_run=step_run)
    call(job, "record_stopped", step_run=step_run)
    call(job, "record_stopped", step_run=step_run)
    assert job.statuses()[1] == {step: ["stopped" if pipeline == "retried" else "cancelled"]}


def test_many_names_are_read(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("fan_out", tmp_path, width=120)
    wide = [f"wide_{number}" for number in range(120)]
    for name in wide[::10]:
        call(job, "start", run=job.run, step=name)
    found = call(job, "latest", run=job.run, steps=[name + "x" * 60 for name in wide] + wide)
    assert sorted(found) == sorted(wide[::10])


@pytest.fixture(scope="module")
def cached(zen: Zen, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run whose steps are in the cache since."""
    job = zen.submit("cached", tmp_path_factory.mktemp("cached"), value=7)
    assert call(job, "cache_answers", run=job.run, steps=["first"]) == [None]
    assert job.pipeline()[0] == 0
    return job


def test_the_cache_answers_without_the_users_code(cached: Job) -> None:
    again = cached.zen.submit("cached", cached.folder, value=7)
    answers = call(again, "cache_answers", run=again.run, steps=["first", "second"])
    assert answers == ["cached", "cached"]
    assert again.statuses() == ("completed", {"first": ["cached"], "second": ["cached"]})


@pytest.mark.parametrize("status", ["stopping", "failed"])
def test_the_cache_has_no_answer_for_a_run_that_takes_no_step_any_more(cached: Job, status: str) -> None:
    """A step that would have to run is refused likewise, in its own process."""
    late = cached.zen.submit("cached", cached.folder, value=7, options={"execution_mode": "stop_on_failure"})
    cached.zen.ask("set_run_status", run=late.run, status=status)
    assert call(late, "cache_answers", run=late.run, steps=["first"]) == [None]
    assert late.statuses() == ({"stopping": "stopped"}.get(status, status), {})
