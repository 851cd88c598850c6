"""One attempt of a step in a process of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bridge import names
from tests.host.conftest import HERE, TIMEOUT, Job, Zen


def test_code_in_the_working_folder_is_found_before_ours(zen: Zen, tmp_path: Path) -> None:
    """As in an image: no source root is given, and a module of the user's has the name of one of the host's."""
    job = zen.submit("chain", tmp_path, length=2)
    work = tmp_path / "app"
    shutil.copytree(HERE / "project", work)
    process = job.start(
        "step",
        "--snapshot-id",
        job.snapshot,
        "--step",
        "one",
        **{names.ENV_SOURCE_ROOT: None, names.ENV_WORK_DIR: str(work)},
    )
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    (begin, _) = job.trace("one")
    assert begin["store"] == str(work / "store.py")


@pytest.mark.slow  # test_pipeline.py has its record, test_serve.py a process of its own
def test_a_step_that_raises_exits_with_1_and_is_not_retried_here(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("retried", tmp_path)
    code, output = job.step("fail_first")
    assert code == 1
    assert "attempt 1" in output
    assert job.statuses() == ("running", {"fail_first": ["retrying"]})


@pytest.mark.slow  # tests/integration/test_ends.py has it after an eviction
def test_a_step_run_whose_process_died_goes_on_in_another(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging", tmp_path)
    left = begin_and_die(job)

    code, output = job.step("hung", "--step-run-id", left)

    assert code == 0, output
    (step,) = job.read()["steps"]
    assert (step["id"], step["status"], step["version"]) == (left, "completed", 1)
    assert step["outputs"] == {"output": [1]}
    assert "Initiating heartbeat" in output


@pytest.mark.slow
def test_a_continued_step_that_raises_is_failed(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging", tmp_path)
    left = begin_and_die(job)
    (tmp_path / "break").touch()

    code, output = job.step("hung", "--step-run-id", left)

    assert code == 1, output
    (step,) = job.read()["steps"]
    assert (step["id"], step["status"]) == (left, "failed")
    assert "broken" in step["exception"]


@pytest.mark.slow  # an interpreter that loads ZenML
def test_a_step_run_that_lost_its_place_is_not_run_by_the_next_sandbox(zen: Zen, tmp_path: Path) -> None:
    """Its process died before a heartbeat told it."""
    job = zen.submit("hanging", tmp_path)
    left = begin_and_die(job)
    job.zen.ask("call", module="step_run_calls", function="lose_its_place", arguments={"step_run": left})

    code, output = job.step("hung", "--step-run-id", left)

    assert code == 0, output
    (step,) = job.read()["steps"]
    assert (step["id"], step["status"]) == (left, "cancelled")
    assert job.trace("hung") == []


def begin_and_die(job: Job) -> str:
    """Leave a RUNNING step run behind; the attempt that goes on with it needs not wait."""
    (job.folder / "go").touch()
    arguments = {"run": job.run, "step": "hung"}
    return job.zen.ask("call", module="step_run_calls", function="start", arguments=arguments)
