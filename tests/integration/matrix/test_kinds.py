"""Artifacts of every kind, and models: what there is of them in ZenML is what its local orchestrator leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab import Lab, Ran

PLACES = {
    "process, pipeline": ("process", {"execution_mode": "pipeline"}),
    "process, per_step": ("process", {"execution_mode": "per_step"}),
    "modal, pipeline": ("modal", {"execution_mode": "pipeline"}),
    "modal, warm": ("modal", {"execution_mode": "per_step"}),
}


@pytest.fixture
def kinds(lab: Lab) -> Any:

    import kinds

    return kinds


def known(stack: str, lab: Lab) -> None:
    """Save the artifact which the pipelines look for, where the sandboxes of this stack can read it."""
    from zenml import log_metadata, save_artifact

    lab.activate(stack)
    found = save_artifact(41, "known to the kinds")
    log_metadata({"accuracy": 0.75}, artifact_version_id=found.id)


def left(lab: Lab, pipeline: Any, stack: str, settings: Any = None) -> dict[str, Any]:
    """What there is of a run's artifacts and models, without ids and times."""
    known(stack, lab)
    ran = lab.run(pipeline, stack, settings=settings)
    assert ran.error is None
    assert set(ran.steps.values()) == {"completed"}
    return {
        "outputs": {
            (step, name): [told(version) for version in versions]
            for step, made in ran.run.steps.items()
            for name, versions in made.outputs.items()
        },
        "inputs": {
            (step, name): [(found.input_type.value, found.materializer.attribute) for found in versions]
            for step, made in ran.run.steps.items()
            for name, versions in made.inputs.items()
        },
        "models": models(ran),
        "tags": sorted(tag.name for tag in ran.run.tags),
    }


def told(version: Any) -> dict[str, Any]:
    value = version.load()
    if isinstance(value, Path):  # a copy of a registered folder
        value = sorted(path.name for path in value.iterdir())
    return {
        "name": generic(version.artifact.name),
        "value": vars(value) if hasattr(value, "x") else value,
        "type": (version.type.value, version.save_type.value, version.data_type.attribute),
        "materializer": version.materializer.attribute,
        "tags": sorted(tag.name for tag in version.tags),
        "metadata": {name: value for name, value in version.run_metadata.items() if name != "storage_size"},
        "pictures": [(picture.type.value, picture.uri.rsplit("/", 1)[-1]) for picture in version.visualizations or []],
    }


def generic(name: str) -> str:
    """ZenML names external artifacts by an id."""
    return "external" if name.startswith("external_") else name


def models(ran: Ran) -> dict[str, Any]:
    """Of the run and of each step: the model, and all artifacts linked to that version of it."""
    from zenml.client import Client

    client = Client()
    found = {"": ran.run.model_version, **{name: step.model_version for name, step in ran.run.steps.items()}}
    told = {}
    for where, version in found.items():
        if version is None:
            told[where] = None
            continue
        links = client.list_model_version_artifact_links(model_version_id=version.id, size=50, hydrate=True).items
        runs = client.list_model_version_pipeline_run_links(model_version_id=version.id, size=50, hydrate=True).items
        told[where] = {
            "model": version.model.name,
            "artifacts": sorted(generic(link.artifact_version.artifact.name) for link in links),
            "runs": [link.pipeline_run.id == ran.run.id for link in runs],
            "metadata": client.get_model_version(version.model.name, version.number).run_metadata,
        }
    return told


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_of_a_static_pipeline(lab: Lab, kinds: Any, place: str) -> None:
    runner, settings = PLACES[place]
    expected = left(lab, kinds.static, "default")
    check(expected)
    assert left(lab, kinds.static, lab.stack(runner), settings) == expected


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["process", "modal"])
@pytest.mark.parametrize("runtime", ["inline", "isolated"])
def test_of_a_dynamic_pipeline(lab: Lab, kinds: Any, runtime: str, runner: str) -> None:
    pipeline = getattr(kinds, runtime)
    expected = left(lab, pipeline, "default")
    check(expected)
    assert left(lab, pipeline, lab.stack(runner)) == expected


def check(left: dict[str, Any]) -> None:
    """ZenML's local orchestrator left what this is about."""
    outputs, inputs = left["outputs"], left["inputs"]
    assert {where: [found["value"] for found in versions] for where, versions in outputs.items()} == {
        ("makes_a_point", "point"): [{"x": 3, "y": 4}],
        ("looks_at_it", "coordinates"): [{"x": 3, "y": 4}],
        ("takes_it_as_it_is", "content"): ["3 4"],
        ("takes_what_is_outside", "outside"): [{"outside": 1}],
        ("by_hand", "by_hand"): [["hand", "file.txt"]],
        ("by_hand", "saved"): [{"by": "hand"}],
        ("by_hand", "registered"): [["file.txt"]],
        ("of_another_model", "other"): ["other of the kinds"],
        ("takes_lazily", "lazily"): [[41, 0.75]],
        ("takes_what_the_model_has", "weight"): [0.5],
        ("trains", "weights"): [{"weight": 0.5}],
    }
    (point,) = outputs[("makes_a_point", "point")]
    assert point["tags"] == ["of the configuration", "of the step"]
    assert point["metadata"] == {"distance": 7, "of": "the step"}
    assert (point["materializer"], point["pictures"]) == ("PointMaterializer", [("markdown", "point.md")])
    (saved,) = outputs[("by_hand", "saved")]
    assert (saved["tags"], saved["metadata"]["saved"], saved["metadata"]["later"]) == (["saved"], True, 1)
    assert outputs[("trains", "weights")][0]["type"][0] == "ModelArtifact"
    assert [kind for kind, _ in inputs[("takes_what_is_outside", "value")]] == ["external"]
    kinds, other = left["models"][""], left["models"]["of_another_model"]
    assert (kinds["model"], kinds["runs"], kinds["metadata"]) == ("kinds", [True], {"accuracy": 0.9})
    assert {"point", "weights", "saved"} <= set(kinds["artifacts"])
    assert (other["model"], other["artifacts"]) == ("other of the kinds", ["other"])
    assert left["tags"] == ["of the pipeline"]
