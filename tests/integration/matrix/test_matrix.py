"""ZenML's features, one pipeline: the orchestrator here leaves in ZenML what ZenML's local orchestrator leaves."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.lab import IMAGE, STACK_CODE, Lab

PROJECT = Path(__file__).parent / "project"
PLACES = {
    "process, pipeline": ("process", {"execution_mode": "pipeline"}),
    "process, per_step": ("process", {"execution_mode": "per_step"}),
    "modal, pipeline": ("modal", {"execution_mode": "pipeline"}),
    "modal, per_step": ("modal", {"execution_mode": "per_step"}),
}
DYNAMIC = ("process", "modal")


@pytest.fixture(scope="module")
def everything(lab: Lab) -> Any:
    from zenml.client import Client
    from zenml.enums import StackComponentType

    lab.stack("modal")
    Client().create_secret("matrix", {"user": "ada", "password": "secret of the matrix"})
    Client().create_flavor("seen_tracker.SeenTrackerFlavor", StackComponentType.EXPERIMENT_TRACKER)
    Client().create_stack_component("matrix", "seen", StackComponentType.EXPERIMENT_TRACKER, {})
    sys.path.insert(0, str(PROJECT))
    yield importlib.import_module("everything")
    sys.path.remove(str(PROJECT))


def plain(value: Any) -> Any:
    """An artifact's value as something that can be compared."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.model_dump() if hasattr(value, "model_dump") else value


def tracked(stack: str) -> str:
    """A stack like this one, with an experiment tracker."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    name = f"tracked-{stack}"
    client = Client()
    if not client.list_stacks(name=name).items:
        parts = {kind: each[0].id for kind, each in client.get_stack(stack).components.items()}
        client.create_stack(name, components={**parts, StackComponentType.EXPERIMENT_TRACKER: "matrix"})
    return name


def run(lab: Lab, pipeline: Any, stack: str, into: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run it, and return what ZenML has of it afterwards, without ids and times."""
    from zenml.client import Client
    from zenml.config import DockerSettings
    from zenml.utils import source_utils

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(tracked(stack))
    into.mkdir(parents=True)
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    prepared = pipeline.with_options(
        settings={"docker": docker, **({"orchestrator": settings} if settings else {})},
        environment={"SEEN": str(into), "OF_THE_RUN": "yes"},
    )
    known = {run.id for run in Client().list_pipeline_runs(size=10, sort_by="desc:created").items}
    with pytest.raises(Exception, match=r"breaks|as told"):
        prepared(str(into))
    (new,) = [run for run in Client().list_pipeline_runs(size=10, sort_by="desc:created").items if run.id not in known]
    run = Client().get_pipeline_run(new.id)
    return {
        "status": run.status.value,
        "steps": {name: (step.status.value, step.version) for name, step in run.steps.items()},
        "values": {
            artifact: plain(found.load())
            for step in run.steps.values()
            for artifact, versions in step.outputs.items()
            for found in versions
        },
        "tags": sorted(tag.name for tag in run.steps["several"].outputs["array"][0].tags),
        "metadata": run.steps["several"].run_metadata["rows"],
        "model": run.model_version.model.name if run.model_version else None,
        "exception": run.steps["breaks"].exception_info.message,
        **seen(into / "seen.jsonl"),
    }


def seen(path: Path) -> dict[str, Any]:
    """What each step and the run's own hooks wrote down, in order; and the init and cleanup hooks of each process."""
    by_step: dict[str | None, list[dict[str, Any]]] = {}
    by_process: dict[int, list[str]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        process = line.pop("pid", 0)
        if line["what"] in ("init hook", "cleanup hook"):
            by_process.setdefault(process, []).append(line["what"])
        else:
            by_step.setdefault(line.pop("step"), []).append(line)
    return {"seen": by_step, "processes": list(by_process.values())}


def check_seen(found: dict[str, Any], processes: int) -> None:
    """In each of so many processes: the init hook, once, and at last the cleanup hook. Steps had what it made."""
    assert found["processes"] == [["init hook", "cleanup hook"]] * processes
    states = [line["of_init"] for lines in found["seen"].values() for line in lines if "of_init" in line]
    assert states == [{"greeting": "hello"}] * 3


def without_processes(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "processes"}


@pytest.fixture(scope="module")
def expected(lab: Lab, everything: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ZenML's local orchestrator leaves."""
    return run(lab, everything.everything, "default", tmp_path_factory.mktemp("local") / "run", {})


@pytest.fixture(scope="module")
def expected_of_dynamic(lab: Lab, everything: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ZenML's local orchestrator leaves of the dynamic one."""
    return run(lab, everything.dynamic, "default", tmp_path_factory.mktemp("local") / "run", {})


@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=[pytest.mark.slow] if name != "process, pipeline" else []) for name in PLACES]
)
def test_everything(
    lab: Lab,
    everything: Any,
    expected: dict[str, Any],
    tmp_path: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STACK_CODE)]))
    runner, settings = PLACES[place]
    found = run(lab, everything.everything, lab.stack(runner), tmp_path / "run", settings)
    check_seen(expected, 1)
    check_seen(found, 7)  # each attempt has a process of its own
    assert without_processes(found) == without_processes(expected)


@pytest.mark.slow
@pytest.mark.parametrize("runner", DYNAMIC)
def test_everything_as_a_dynamic_pipeline(
    lab: Lab,
    everything: Any,
    expected_of_dynamic: dict[str, Any],
    tmp_path: Path,
    runner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STACK_CODE)]))
    found = run(lab, everything.dynamic, lab.stack(runner), tmp_path / "run", {})
    check_seen(expected_of_dynamic, 1)
    check_seen(found, 1 + 5)  # the function's process, with all inline steps, and one for each isolated attempt
    assert without_processes(found) == without_processes(expected_of_dynamic)
