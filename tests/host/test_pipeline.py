"""The whole pipeline in one sandbox: a real store, real processes.

A host takes seconds to start, so tests that disturb nobody share one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from zenml.constants import ENV_ZENML_EXECUTION_CONTEXT_STEP_RUN_CACHE_SIZE

from tests.host.conftest import Job, Zen, with_a_thread, with_uv

SCENARIOS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    # name: pipeline, its options, its arguments, the host's arguments
    "zoo": ("zoo", {}, {}, []),
    "two at once": ("fan_out", {}, {"width": 5, "others": 2, "seconds": 0.3}, ["--max-parallelism", "2"]),
    "one cpu": ("fan_out", {}, {"width": 3, "cpu": 1.0, "seconds": 0.3}, ["--cpu", "1"]),
    "gpus": ("gpus", {}, {}, ["--gpus", "2"]),
    "fail fast": ("failing", {"execution_mode": "fail_fast"}, {}, []),
    "stop on failure": ("failing", {"execution_mode": "stop_on_failure"}, {}, []),
    "continue on failure": ("failing", {"execution_mode": "continue_on_failure"}, {}, []),
    "ends": ("ends", {"execution_mode": "continue_on_failure"}, {}, []),
    "abandoned retry": ("abandoned", {"execution_mode": "fail_fast"}, {}, []),
}


@dataclass
class Finished:
    job: Job
    code: int
    output: str
    statuses: tuple[str, dict[str, list[str]]]
    steps: list[dict[str, Any]]
    uv: list[str]
    """What uv was called with, a line for each call."""

    def exception(self, step: str) -> str:
        return next(found["exception"] for found in self.steps if found["name"] == step)


@pytest.fixture(scope="module")
def finished(zen: Zen, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    @cache
    def run(name: str) -> Finished:
        pipeline, options, arguments, of_host = SCENARIOS[name]
        job = zen.submit(pipeline, tmp_path_factory.mktemp("scenario"), options=options, **arguments)
        path, calls = with_uv(job, tmp_path_factory.mktemp("image"))
        code, output = job.pipeline(*of_host, PATH=path, **{ENV_ZENML_EXECUTION_CONTEXT_STEP_RUN_CACHE_SIZE: "1"})
        uv = calls.read_text().splitlines() if calls.exists() else []
        return Finished(job, code, output, job.statuses(), job.read()["steps"], uv)

    return run


def most_at_once(job: Job, steps: list[str]) -> int:
    """The most steps that ran at the same time, by the times that they noted themselves."""
    changes = []
    for step in steps:
        for line in job.trace(step):
            changes.append((line["time"], 1 if line["what"] == "begin" else -1))
    return max(itertools.accumulate(change for _, change in sorted(changes)))


def test_everything_succeeds(finished) -> None:
    ran = finished("zoo")
    assert ran.code == 0
    assert ran.statuses[0] == "completed"
    assert set(itertools.chain(*ran.statuses[1].values())) == {"completed"}
    assert next(step["outputs"] for step in ran.steps if step["name"] == "bottom") == {"output": [2]}
    assert "[one] value 1" in ran.output


def test_a_step_may_have_more_inputs_than_zenml_keeps_in_a_process(finished) -> None:
    """It keeps a hundred, here one: `bottom` has two."""
    assert finished("zoo").statuses[1]["bottom"] == ["completed"]


def test_a_chain_runs_in_order(finished) -> None:
    begins = [finished("zoo").job.trace(f"chain_{number}")[0]["time"] for number in range(4)]
    assert begins == sorted(begins)


def test_independent_steps_run_side_by_side(finished) -> None:
    assert most_at_once(finished("zoo").job, [f"meet_{number}" for number in range(3)]) == 3


@pytest.mark.slow  # tests/integration/test_runs.py has it too
def test_max_parallelism_is_kept_and_used(finished) -> None:
    ran = finished("two at once")
    assert ran.code == 0
    assert most_at_once(ran.job, [f"wide_{number}" for number in range(5)]) == 2


@pytest.mark.slow  # test_admission.py has the rule
def test_steps_that_the_sandbox_can_t_hold_together_never_overlap(finished) -> None:
    ran = finished("one cpu")
    assert ran.code == 0
    assert most_at_once(ran.job, [f"wide_{number}" for number in range(3)]) == 1


@pytest.mark.slow  # test_admission.py deals them out
def test_each_step_sees_the_gpus_that_it_holds(finished) -> None:
    ran = finished("gpus")
    assert ran.code == 0
    seen = {step: ran.job.trace(step)[0]["cuda"] for step in ("gpu_0", "gpu_1", "cpu_only")}
    assert {seen["gpu_0"], seen["gpu_1"]} == {"0", "1"}
    assert seen["cpu_only"] == ""


@pytest.mark.slow  # tests/integration/test_runs.py has it too
def test_fail_fast_stops_what_runs(finished) -> None:
    ran = finished("fail fast")
    assert ran.code == 1
    assert ran.statuses == ("failed", {"bad": ["failed"], "beside": ["stopped"]})
    assert [line["what"] for line in ran.job.trace("beside")] == ["begin"]
    assert "Step later did not run" in ran.output


def test_stop_on_failure_lets_what_runs_end(finished) -> None:
    ran = finished("stop on failure")
    assert ran.code == 1
    assert ran.statuses == ("failed", {"bad": ["failed"], "beside": ["completed"]})


@pytest.mark.slow  # tests/integration/test_runs.py has it too
def test_continue_on_failure_runs_what_can_run(finished) -> None:
    ran = finished("continue on failure")
    assert ran.code == 1
    assert ran.statuses == (
        "failed",
        {"bad": ["failed"], "beside": ["completed"], "later": ["completed"]},
    )


def test_each_end_of_an_attempt_is_recorded_for_what_it_is(finished) -> None:
    ran = finished("ends")
    assert ran.code == 1
    assert ran.statuses == (
        "failed",
        {
            "raises_once": ["retried", "completed"],
            "after": ["completed"],
            "raises_always": ["retried", "failed"],
            "killed_once": ["retried", "completed"],
            "killed": ["failed"],
            "exits_0": ["failed"],
            "sys_exits_0": ["failed"],
        },
    )
    assert len(ran.job.trace("raises_always")) == 2
    for step in ("killed_once", "killed"):
        assert "signal 9" in ran.exception(step)
    assert "exited with 0" in ran.exception("exits_0")


@pytest.mark.slow  # test_step_runs.py has what is recorded
def test_a_retry_that_fail_fast_forestalls_isn_t_left_retrying(finished) -> None:
    ran = finished("abandoned retry")
    assert ran.code == 1
    assert ran.statuses == ("failed", {"again": ["stopped"], "slow": ["completed"], "bad": ["failed"]})


def test_lines_of_steps_side_by_side_stay_whole(finished) -> None:
    ran = finished("zoo")
    assert ran.code == 0
    expected = {f"[loud_{step}] loud_{step} says {line} {'x' * 200}" for step in range(2) for line in range(300)}
    assert expected <= set(ran.output.splitlines())


def test_a_step_finds_what_it_would_find_in_a_sandbox_of_its_own(finished) -> None:
    ran = finished("zoo")
    assert ran.code == 0
    (line,) = ran.job.trace("environment_of")
    assert (line["at_import"], line["now"]) == ("for the step", "for the step")
    assert line["main_thread"]
    assert line["session_leader"]
    assert Path(line["store"]).parent.name == "project"
    assert (ran.job.folder / "at-exit").exists()


def test_the_sandbox_s_packages_are_listed_only_until_the_run_has_begun(finished) -> None:
    """By steps that wait for no other, at most: where there is pip alone it takes half a second of processor time."""
    ran = finished("zoo")
    waited = {"left", "right", "bottom", "chain_1", "chain_2", "chain_3"}
    assert 1 <= len(ran.uv) <= len({step["name"] for step in ran.steps} - waited)
    assert {call.partition(" --python")[0] for call in ran.uv} == {"pip freeze"}


def test_forked_steps_draw_different_random_numbers(finished) -> None:
    ran = finished("zoo")
    assert ran.code == 0
    for source in ("random", "numpy", "uuid"):
        assert len({ran.job.trace(f"random_{number}")[0][source] for number in range(2)}) == 2


def await_begin(job: Job, step: str, times: int = 1) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 90
    while len(lines := job.trace(step)) < times:
        assert time.monotonic() < deadline, f"{step} didn't begin"
        time.sleep(0.05)
    return lines


def await_completed(job: Job, step: str) -> None:
    await_statuses(job, step, ["completed"])


def await_statuses(job: Job, step: str, statuses: list[str]) -> None:
    deadline = time.monotonic() + 90
    while job.statuses()[1].get(step) != statuses:
        assert time.monotonic() < deadline, f"{step} didn't end"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def await_death(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow  # tests/integration/test_stopping.py has cancelled ones
def test_sigterm_in_a_run_that_is_stopping_stops_its_steps(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging_stubbornly", tmp_path)
    host = job.start_pipeline()
    await_begin(job, "hung")
    await_completed(job, "one")
    zen.ask("set_run_status", run=job.run, status="stopping")
    host.terminate()
    output, _ = host.communicate(timeout=60)
    assert host.returncode == 2, output
    assert job.statuses() == ("stopped", {"one": ["completed"], "hung": ["stopped"]})


@pytest.mark.slow
def test_steps_of_a_sandbox_that_is_ended_from_outside_go_on_in_the_next(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging", tmp_path)
    host = job.start_pipeline()
    (began,) = await_begin(job, "hung")
    await_completed(job, "one")
    host.terminate()
    output, _ = host.communicate(timeout=60)
    assert host.returncode == 2, output
    assert not is_alive(began["pid"])
    assert job.statuses()[1]["hung"] == ["running"]

    code, output = job.pipeline()

    assert code == 0, output
    done = {"one": ["completed"], "hung": ["completed"], "bottom": ["completed"]}
    assert job.statuses() == ("completed", done)


@pytest.mark.slow
def test_a_retry_that_waits_outlives_a_sandbox_that_is_ended_from_outside(zen: Zen, tmp_path: Path) -> None:
    """Also in a run that would take the attempts that never were as failed ones."""
    job = zen.submit("abandoned", tmp_path, options={"execution_mode": "continue_on_failure"})
    host = job.start_pipeline()
    await_statuses(job, "bad", ["failed"])
    await_statuses(job, "again", ["retrying"])
    host.terminate()
    output, _ = host.communicate(timeout=60)
    assert host.returncode == 2, output
    assert job.statuses()[1]["again"] == ["retrying"]


@pytest.mark.slow  # two hosts; test_crash.py has flows of many lives
def test_a_killed_host_takes_its_steps_with_it_and_the_next_goes_on(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging", tmp_path)
    host = job.start_pipeline()
    (began,) = await_begin(job, "hung")
    await_completed(job, "one")
    host.kill()
    host.wait(timeout=30)
    await_death(began["pid"])

    code, output = job.pipeline()

    assert code == 0, output
    assert len([line for line in job.trace("one") if line["what"] == "begin"]) == 1
    (hung,) = [step for step in job.read()["steps"] if step["name"] == "hung"]
    assert (hung["version"], hung["status"]) == (1, "completed")


@pytest.mark.slow  # a killed host has the same ways
def test_a_dead_zygote_costs_one_attempt_and_steps_without_one_die_with_the_host_too(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("retried", tmp_path, how="kill parent")
    host = job.start_pipeline()
    _, began = await_begin(job, "fail_first", 2)
    host.kill()
    output, _ = host.communicate(timeout=60)
    assert output.count("a process of their own") == 1
    await_death(began["pid"])
    (tmp_path / "go").touch()

    code, output = job.pipeline()

    assert code == 0, output
    assert job.statuses() == ("completed", {"fail_first": ["retried", "completed"], "after": ["completed"]})


@pytest.mark.slow
def test_two_steps_find_the_zygote_dead_at_once(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("retried_beside", tmp_path)
    host = job.start_pipeline()
    await_begin(job, "fail_first", 2)
    await_begin(job, "hang_first", 1)
    (tmp_path / "go").touch()
    output, _ = host.communicate(timeout=90)
    assert host.returncode == 0, output
    assert output.count("a process of their own") == 1
    assert set(job.statuses()[1]) == {"fail_first", "hang_first"}
    assert {found[-1] for found in job.statuses()[1].values()} == {"completed"}


@pytest.mark.slow
def test_a_run_that_is_stopped_in_zenml_ends_by_itself(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("hanging_stubbornly", tmp_path)
    host = job.start_pipeline()
    await_begin(job, "hung")
    await_completed(job, "one")
    zen.ask("set_run_status", run=job.run, status="stopping")
    output, _ = host.communicate(timeout=90)
    print(output)
    assert host.returncode == 2, output
    assert job.statuses() == ("stopped", {"one": ["completed"], "hung": ["stopped"]})


@pytest.mark.slow  # a second's work of the host, and a program for each step
def test_a_stack_that_the_host_can_t_load_costs_each_step_a_process_of_its_own(zen: Zen, tmp_path: Path) -> None:
    """Whatever it can't be loaded for."""
    zen.ask("call", module="picky_flavor", function="activate", arguments={})
    try:
        job = zen.submit("chain", tmp_path, length=2)
    finally:
        zen.ask("call", module="picky_flavor", function="deactivate", arguments={})
    code, output = job.pipeline()
    assert code == 0
    assert job.statuses() == ("completed", {"one": ["completed"], "add_1": ["completed"]})
    (line,) = [line for line in output.splitlines() if "process of its own" in line]
    assert "the stack picky can't be loaded" in line
    assert "it needs the step's code" in line
    assert "a second line" not in output


@pytest.mark.slow
def test_where_forking_isn_t_safe_each_step_gets_a_process_of_its_own(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path, length=1)
    code, output = job.pipeline(PYTHONPATH=with_a_thread(job, tmp_path))
    assert code == 0
    assert job.statuses() == ("completed", {"one": ["completed"]})
    (line,) = [line for line in output.splitlines() if "process of its own" in line]
    assert "threads are running: of the image" in line


@pytest.mark.slow  # the flow refuses it first: tests/integration/test_bad_input.py
def test_a_run_that_doesn_t_exist_breaks_the_host(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("chain", tmp_path)
    job.run = job.snapshot
    code, output = job.pipeline()
    assert code == 3
    assert "The pipeline can't start." in output
    assert f"Unable to get pipeline run with ID '{job.run}'" in output
