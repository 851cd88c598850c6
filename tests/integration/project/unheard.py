"""A pipeline whose steps need a package that this environment hasn't got."""

from __future__ import annotations

import os

from zenml import pipeline, step
from zenml.config import DockerSettings


@step(enable_cache=False)
def greet(folder: str, who: str) -> str:
    import unheard_of  # type: ignore[import-not-found]
    from shapes import trace

    said = f"{unheard_of.greeting} {who}"
    trace(folder, "begin", said=said, image=os.environ.get("IMAGE_OF"))
    return said


@step(enable_cache=False)
def answer(folder: str, said: str) -> str:
    from shapes import trace

    trace(folder, "begin", said=said)
    return f"{said}!"


@pipeline(dynamic=True)
def dynamic_greeting(folder: str, who: str = "world") -> None:
    """One step in a sandbox of its own, one in that of the function."""
    answer(folder, greet.with_options(runtime="isolated")(folder, who))


own_greet = greet.with_options(
    runtime="isolated", settings={"docker": DockerSettings(environment={"IMAGE_OF": "this step"})}
)


@pipeline(dynamic=True, depends_on=[own_greet])
def dynamic_with_own_image(folder: str, who: str = "world") -> None:
    """The isolated step has an image of its own."""
    answer(folder, own_greet(folder, who))


@pipeline
def greeting(folder: str, who: str = "world") -> None:
    answer(folder, greet(folder, who))
