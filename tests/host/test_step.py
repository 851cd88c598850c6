"""One attempt of a step in a process of its own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bridge import names
from tests.host.conftest import HERE, TIMEOUT, Job, Zen


def test_a_step_runs_where_the_source_root_is_and_prints_its_output(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path, length=2)
    code, output = job.step("one")
    assert code == 0, output
    assert "value 1" in output
    assert job.statuses() == ("running", {"one": ["completed"]})
    assert Path(job.trace("one")[0]["cwd"]).name == "work"


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


def test_a_step_that_raises_exits_with_1_and_is_not_retried_here(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("retried", tmp_path)
    code, output = job.step("fail_first")
    assert code == 1
    assert "attempt 1" in output
    assert job.statuses() == ("running", {"fail_first": ["retrying"]})


def test_a_step_run_whose_process_died_goes_on_in_another(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging", tmp_path)
    process = job.start("step", "--snapshot-id", job.snapshot, "--step", "hung")
    _await_begin(job, "hung")
    process.kill()
    process.wait(timeout=30)
    (running,) = job.read()["steps"]
    assert running["status"] == "running"

    code, output = job.step("hung", "--step-run-id", running["id"])

    assert code == 0, output
    (step,) = job.read()["steps"]
    assert (step["id"], step["status"], step["version"]) == (running["id"], "completed", 1)
    assert step["outputs"] == {"output": [2]}


def test_a_continued_step_that_raises_is_failed(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging", tmp_path)
    process = job.start("step", "--snapshot-id", job.snapshot, "--step", "hung")
    _await_begin(job, "hung")
    process.kill()
    process.wait(timeout=30)
    (running,) = job.read()["steps"]
    (tmp_path / "break").touch()

    code, output = job.step("hung", "--step-run-id", running["id"])

    assert code == 1, output
    (step,) = job.read()["steps"]
    assert (step["id"], step["status"]) == (running["id"], "failed")
    assert "broken" in step["exception"]


def _await_begin(job: Job, step: str) -> None:
    deadline = time.monotonic() + 60
    while not job.trace(step):
        assert time.monotonic() < deadline
        time.sleep(0.05)
