"""Steps of one run take turns in warm sandboxes, on both of Modal's backends and as local processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from zenml.enums import ExecutionMode

from tests.integration.lab import Lab, Ran, eventually
from tests.integration.under import Under

PER_STEP = {"execution_mode": "per_step"}


@pytest.fixture
def shapes(lab: Lab):  # type: ignore[no-untyped-def]
    import shapes

    return shapes


def sandboxes_of(ran: Ran, *steps: str) -> list[str]:
    """The sandbox of each step's first attempt."""
    return [ran.traces(step)[0]["sandbox"] for step in steps]


@pytest.mark.at("modal-v2")
def test_a_chain_takes_one_sandbox(lab: Lab, shapes, place: str) -> None:
    """The benchmark's chain, at its full length."""
    ran = lab.run(shapes.chain, lab.stack(place), settings=PER_STEP, length=20)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    steps = ["one", *(f"add_{number}" for number in range(1, 20))]
    assert len(set(sandboxes_of(ran, *steps))) == 1
    assert len({ran.traces(step)[0]["pid"] for step in steps}) == len(steps)
    assert [ran.run.steps[step].run_metadata["prefect_task_run_id"] for step in steps] == [
        str(ran.task_runs[step].id) for step in steps
    ]
    if place == "modal":
        (box,) = lab.sandboxes(ran)
        assert box.status not in ("pending", "running")


@pytest.mark.slow  # tests/host/test_rest.py has what else a step asks
def test_a_step_that_downloads_its_code_asks_for_no_component_of_its_stack(lab: Lab, shapes) -> None:
    """Its host has loaded them all."""
    ran = lab.run(shapes.chain, lab.stack("modal"), settings={**PER_STEP, "secrets": ["verbose"]}, length=2)
    assert ran.status == "completed"
    assert ran.run.snapshot.code_path is not None
    for step in ("one", "add_1"):
        asked = re.findall(r"\] (\w+ /api/v1/[a-z_]+)\S* started", "\n".join(lab.logs(ran.task_runs[step], 50)))
        assert "POST /api/v1/steps" in asked
        assert not [each for each in asked if each.startswith("GET") and not each.endswith("/runs")]


@pytest.mark.slow  # tests/unit/test_pool.py has who enters which
@pytest.mark.at("modal-v2")
def test_without_warm_each_step_has_a_sandbox_of_its_own(lab: Lab, shapes, place: str) -> None:
    ran = lab.run(shapes.chain, lab.stack(place), settings={**PER_STEP, "warm": False}, length=2)
    assert ran.status == "completed"
    assert len(set(sandboxes_of(ran, "one", "add_1"))) == 2
    if place == "modal":
        assert lab.sandboxes_by_step(ran) == {"one": 1, "add_1": 1}


@pytest.mark.slow  # tests/unit/test_pool.py has who makes way for whom
def test_what_a_step_asks_for_besides_gets_it_a_sandbox_of_its_own(lab: Lab, shapes) -> None:
    """Three steps that share, one that doesn't; and what the three leave idle is ended while the last one runs."""
    ran = lab.run(shapes.mixed, lab.stack("modal"), settings={**PER_STEP, "max_parallelism": 1})
    assert ran.status == "completed"
    first, second, big, last = sandboxes_of(ran, "first", "second", "big", "last")
    assert first == second
    assert len({first, big, last}) == 3, "with one sandbox at a time, the warm one makes way for the big one"
    assert {box.id: box.memory_mib for box in lab.sandboxes(ran)}[big] == 2048


@pytest.mark.slow
def test_one_that_is_idle_for_too_long_is_ended(lab: Lab, shapes) -> None:
    """Although a step that could enter it is still to come: after a step of another kind, which takes longer."""
    settings = {**PER_STEP, "warm_idle_timeout": 1}
    ran = lab.run(shapes.mixed_and_slow_in_the_middle, lab.stack("modal"), settings=settings, seconds=8.0)
    assert ran.status == "completed"
    first, middle, last = sandboxes_of(ran, "first", "middle", "last")
    assert len({first, middle, last}) == 3
    record = lab.modal.sandbox(first)
    assert record.status == "terminated"
    before_the_end = ran.traces("middle", "end")[0]["time"] - (record.created_at + record.seconds)
    assert before_the_end > 3, "it wasn't ended while the step in the middle ran"


@pytest.mark.slow
def test_where_nothing_may_be_idle_nothing_is_started_early(lab: Lab, shapes) -> None:
    ran = lab.run(shapes.diamond, lab.stack("modal"), settings={**PER_STEP, "warm_idle_timeout": 0})
    assert ran.status == "completed"
    assert {box.id for box in lab.sandboxes(ran)} == set(sandboxes_of(ran, *ran.steps))


@pytest.mark.slow  # tests/host/test_pipeline.py has it in a host
@pytest.mark.at("modal-v2")
def test_a_step_s_own_environment_stays_its_own(lab: Lab, shapes, place: str) -> None:
    ran = lab.run(shapes.with_variable, lab.stack(place), settings=PER_STEP)
    assert ran.status == "completed"
    assert len(set(sandboxes_of(ran, "has_it", "hasn_t"))) == 1
    assert [ran.traces(step)[0]["variable"] for step in ("has_it", "hasn_t")] == ["of the step", None]


@pytest.mark.slow
def test_a_gpu_starts_early_only_once_a_run_has_shown_when_it_is_needed(lab: Lab, shapes) -> None:
    stack = lab.stack("modal")

    def early_by() -> float:
        """Seconds from the creation of the sandbox with the GPU to the end of the step above."""
        ran = lab.run(shapes.prepared_for_a_gpu, stack, settings=PER_STEP)
        assert ran.status == "completed"
        (with_gpu,) = [box for box in lab.sandboxes(ran) if box.gpu_type]
        assert {with_gpu.id} == set(sandboxes_of(ran, "train", "tune"))
        return float(ran.traces("load", "end")[0]["time"]) - with_gpu.created_at

    assert early_by() < 0
    assert early_by() > 1


@pytest.mark.slow  # tests/unit/test_pool.py has what is wanted, and kept
def test_where_a_failure_lets_nothing_begin_no_sandbox_is_started_or_kept(lab: Lab, tmp_path: Path) -> None:
    """One dies, which makes room for another sandbox; two go on, above many steps that never run."""
    import stoppable

    under = Under(lab, tmp_path)
    settings = {**PER_STEP, "max_parallelism": 3, "warm_idle_timeout": 600}
    under.start(stoppable.before_a_fan, "modal", settings, {"execution_mode": ExecutionMode.STOP_ON_FAILURE})
    under.until_steps({"bad": "running", "first": "running", "second": "running"})
    (tmp_path / "fail-bad").touch()
    under.until_steps({"bad": "failed", "first": "running", "second": "running"})
    (tmp_path / "go-first").touch()
    (left,) = sandboxes_of(under.ran, "first")
    assert eventually(lambda: lab.modal.sandbox(left).status, lambda status: status == "terminated", 60) == "terminated"
    under.until_steps({"bad": "failed", "first": "completed", "second": "running"})
    (tmp_path / "go-second").touch()
    ran = under.join()
    assert (ran.status, ran.steps) == ("failed", {"bad": "failed", "first": "completed", "second": "completed"})
    assert {box.id for box in lab.sandboxes(ran)} == set(sandboxes_of(ran, "bad", "first", "second"))
