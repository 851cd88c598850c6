"""How pipelines break off, remember and are replayed: they leave in ZenML what its local orchestrator leaves.

One step at a time, as there: what several at once do is in ``tests/integration/test_runs.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from zenml.enums import ExecutionMode, StepRuntime

from tests.integration.lab import IMAGE, Lab, Ran
from tests.integration.matrix.test_kinds import PLACES

pytestmark = [
    pytest.mark.slow,  # modes and caching are shown quickly in test_runs.py, by themselves
    pytest.mark.timeout(900),  # up to twelve runs, one after the other
]

DYNAMIC = {f"process, {runtime.value}": runtime for runtime in StepRuntime}
"""By place: where the steps of a dynamic pipeline run."""


@pytest.fixture
def again(lab: Lab) -> Any:
    import again

    return again


def ours(lab: Lab, place: str) -> tuple[str, dict[str, Any]]:
    runner, settings = PLACES.get(place, ("process", {}))
    return lab.stack(runner), {**settings, "max_parallelism": 1}


def chosen(again: Any, name: str, place: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline of this name for a place, and what it is called with."""
    if place in PLACES:
        return getattr(again, name), {}
    return getattr(again, f"{name}_dynamic"), {"runtime": DYNAMIC[place]}


def left(ran: Ran) -> dict[str, Any]:
    """What ZenML has of a run, without ids and times, and how often the code of each step has been run so far."""
    steps = ran.run.steps
    return {
        "status": ran.status,
        "steps": {name: (step.status.value, step.version) for name, step in steps.items()},
        "values": {
            (name, output): [version.load() for version in versions]
            for name, step in steps.items()
            for output, versions in step.outputs.items()
        },
        "taken over": {name: step.original_step_run_id is not None for name, step in steps.items()},
        "exceptions": {name: step.exception_info.message for name, step in steps.items() if step.exception_info},
        "begun": {path.stem: len(ran.traces(path.stem)) for path in ran.folder.glob("*.jsonl")},
    }


def values(left: dict[str, Any]) -> dict[str, int]:
    return {step: value for (step, _), (value,) in left["values"].items()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", list(ExecutionMode))
def test_a_failure_in_each_execution_mode(
    lab: Lab, again: Any, tmp_path: Path, place: str, mode: ExecutionMode
) -> None:
    options = {"execution_mode": mode}
    expected = left(lab.run(again.breaking, "default", options=options, into=tmp_path / "local"))
    assert (expected["status"], expected["exceptions"]) == ("failed", {"bad": "as told"})
    beside = {"beside", "beside_below"} if mode is ExecutionMode.CONTINUE_ON_FAILURE else set()
    assert set(expected["steps"]) == {"before", "bad"} | beside
    stack, settings = ours(lab, place)
    ran = lab.run(again.breaking, stack, settings=settings, options=options, into=tmp_path / "ours")
    assert ran.error is not None
    assert ran.flow_run.state.name == "Failed", ran.flow_run.state.message
    assert left(ran) == expected


@pytest.mark.parametrize("place", [*PLACES, *DYNAMIC])
def test_what_is_remembered(lab: Lab, again: Any, tmp_path: Path, place: str) -> None:
    """Everything that may be; then what has the same value as before."""
    pipeline, called_with = chosen(again, "remembering", place)

    def three(stack: str, folder: Path, settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        given: list[dict[str, Any]] = [called_with, called_with, {**called_with, "value": 2}]
        return [left(lab.run(pipeline, stack, settings=settings, into=folder, **more)) for more in given]

    expected = three("default", tmp_path / "local")
    assert [one["begun"] for one in expected] == [
        {"first": 1, "other": 1, "total": 1},
        {"first": 1, "other": 1, "total": 2},
        {"first": 1, "other": 2, "total": 3},
    ]
    assert expected[1]["steps"] == {"first": ("cached", 1), "other": ("cached", 1), "total": ("completed", 1)}
    assert [values(one)["total"] for one in expected] == [11, 11, 12]
    stack, settings = ours(lab, place)
    assert three(stack, tmp_path / "ours", settings) == expected


REPLAYS: dict[str, dict[str, Any]] = {
    "what failed": {"skip_successful_steps": True},
    "all of it": {},
    "what isn't skipped": {"skip": ["first"]},
    "with another parameter": {"input_overrides": {"value": 5}},
    "with another input": {"skip": ["first"], "step_input_overrides": {"last": {"right": 100}}},
}


@pytest.mark.parametrize("place", [*PLACES, *DYNAMIC])
def test_replays(lab: Lab, again: Any, tmp_path: Path, place: str) -> None:
    """Of a run that failed, one after the other."""
    from zenml.config import DockerSettings

    pipeline, called_with = chosen(again, "mended", place)

    def all_of(stack: str, folder: Path, settings: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        first = lab.run(pipeline, stack, settings=settings, into=folder, **called_with)
        docker = DockerSettings(parent_image=IMAGE, skip_build=True)
        own = {"orchestrator": settings} if settings else {}
        prepared = pipeline.with_options(settings={"docker": docker, **own})
        found = {"": left(first)}
        for how, given in REPLAYS.items():
            replayed = lab.read(Ran(folder), prepared.replay(pipeline_run=first.run.id, **given).id)
            found[how] = {**left(replayed), "of it": replayed.run.original_run.id == first.run.id}
        return found

    expected = all_of("default", tmp_path / "local")
    assert [one["status"] for one in expected.values()] == ["failed", *["completed"] * len(REPLAYS)]
    assert [how for how, one in expected.items() if one["steps"]["first"] == ("skipped", 1)] == [
        "what failed",
        "what isn't skipped",
        "with another input",
    ]
    assert expected["what failed"]["begun"] == {"first": 1, "again": 2, "last": 1}
    totals = {how: values(one)["last"] for how, one in expected.items() if how}
    assert totals == dict(zip(REPLAYS, [1 + 2, 1 + 3, 1 + 4, 5 + 5, 1 + 100], strict=True))
    stack, settings = ours(lab, place)
    assert all_of(stack, tmp_path / "ours", settings) == expected
