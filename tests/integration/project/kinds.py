"""Artifacts of every kind, and models: a step for each."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar

from zenml import (
    ArtifactConfig,
    ExternalArtifact,
    Model,
    get_pipeline_context,
    get_step_context,
    load_artifact,
    log_metadata,
    pipeline,
    register_artifact,
    save_artifact,
    step,
)
from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact
from zenml.client import Client
from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


class PointMaterializer(BaseMaterializer):
    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Point,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA

    @property
    def path(self) -> str:
        return os.path.join(self.uri, "point.txt")

    def load(self, data_type: type[Any]) -> Point:
        with self.artifact_store.open(self.path, "r") as file:
            x, y = map(int, file.read().split())
        return Point(x, y)

    def save(self, data: Point) -> None:
        with self.artifact_store.open(self.path, "w") as file:
            file.write(f"{data.x} {data.y}")

    def save_visualizations(self, data: Point) -> dict[str, VisualizationType]:
        path = os.path.join(self.uri, "point.md")
        with self.artifact_store.open(path, "w") as file:
            file.write(f"at **{data.x}**, {data.y}")
        return {path: VisualizationType.MARKDOWN}

    def extract_metadata(self, data: Point) -> dict[str, Any]:
        return {"distance": data.x + data.y}


@step(enable_cache=False, output_materializers=PointMaterializer)
def makes_a_point() -> Annotated[Point, ArtifactConfig(name="point", tags=["of the configuration"])]:
    context = get_step_context()
    context.add_output_tags(["of the step"])
    context.add_output_metadata({"of": "the step"})
    return Point(3, 4)


@step(enable_cache=False)
def looks_at_it(point: Point) -> Annotated[dict[str, int], "coordinates"]:
    return {"x": point.x, "y": point.y}


@step(enable_cache=False)
def takes_it_as_it_is(point: UnmaterializedArtifact) -> Annotated[str, "content"]:
    assert isinstance(point, UnmaterializedArtifact)
    with Client().active_stack.artifact_store.open(f"{point.uri}/point.txt", "r") as file:
        return str(file.read())


@step(enable_cache=False)
def takes_what_is_outside(value: dict[str, int]) -> Annotated[dict[str, int], "outside"]:
    return value


@step(enable_cache=False)
def by_hand() -> Annotated[list[str], "by_hand"]:
    """Saves one, loads it, and registers a file that is there."""
    saved = save_artifact({"by": "hand"}, "saved", tags=["saved"], user_metadata={"saved": True})
    log_metadata({"later": 1}, artifact_version_id=saved.id)
    store = Client().active_stack.artifact_store
    folder = os.path.join(store.path, f"registered-{get_step_context().step_run.id}")
    store.makedirs(folder)
    with store.open(os.path.join(folder, "file.txt"), "w") as file:
        file.write("registered")
    register_artifact(folder, "registered")
    return [load_artifact("saved")["by"], *store.listdir(Client().get_artifact_version("registered").uri)]


@step(enable_cache=False)
def trains() -> Annotated[dict[str, float], ArtifactConfig(name="weights", artifact_type=ArtifactType.MODEL)]:
    log_metadata({"accuracy": 0.9}, infer_model=True)
    return {"weight": 0.5}


@step(enable_cache=False)
def of_another_model() -> Annotated[str, "other"]:
    return get_step_context().model.name


@step(enable_cache=False)
def takes_lazily(value: int, accuracy: float) -> Annotated[list[float], "lazily"]:
    return [value, accuracy]


@step(enable_cache=False)
def takes_what_the_model_has(weights: dict[str, float]) -> Annotated[float, "weight"]:
    return weights["weight"]


def each(runtime: Any, known: Any) -> Any:
    """All but what only a static pipeline can do. ``known`` has the value and the metadata of an artifact."""
    point = makes_a_point.with_options(runtime=runtime)()
    looks_at_it.with_options(runtime=runtime)(point)
    takes_it_as_it_is.with_options(runtime=runtime)(point)
    takes_what_is_outside.with_options(runtime=runtime)(ExternalArtifact(value={"outside": 1}))
    by_hand.with_options(runtime=runtime)()
    of_another_model.with_options(model=Model(name="other of the kinds"), runtime=runtime)()
    takes_lazily.with_options(runtime=runtime)(*known)
    return trains.with_options(runtime=runtime)()


@pipeline(model=Model(name="kinds"), tags=["of the pipeline"])
def static(folder: str) -> None:
    known = Client().get_artifact_version("known to the kinds")
    each(None, (known, known.run_metadata["accuracy"]))
    of_model = get_pipeline_context().model.get_artifact("weights")
    takes_what_the_model_has(of_model, after="trains")


@pipeline(dynamic=True, model=Model(name="kinds"), tags=["of the pipeline"])
def inline(folder: str) -> None:
    known = Client().get_artifact_version("known to the kinds")
    takes_what_the_model_has(each("inline", (known, known.run_metadata["accuracy"])))


@pipeline(dynamic=True, model=Model(name="kinds"), tags=["of the pipeline"])
def isolated(folder: str) -> None:
    known = Client().get_artifact_version("known to the kinds")
    takes_what_the_model_has(each("isolated", (known, known.run_metadata["accuracy"])))
