"""A pipeline whose steps are given by name, so that bad input can be laid on any of them."""

from __future__ import annotations

from zenml import pipeline, step
from zenml.steps import CommandStep


@step(enable_cache=False)
def work(folder: str) -> int:
    """Touches a file, by which a test sees that it ran after all."""
    with open(f"{folder}/ran", "a") as file:
        file.write("x")
    return 1


def _given(folder: str, names: list[str]) -> None:
    for name in names:
        work(folder, id=name)


given = pipeline(_given, name="given")
with_slash = pipeline(_given, name="a/b")
with_percent = pipeline(_given, name="a%b")


@pipeline(dynamic=True)
def dynamic(folder: str) -> None:
    work(folder)


@pipeline
def commanded(folder: str) -> None:
    CommandStep(["true"], name="shell")()


@pipeline
def operated(folder: str) -> None:
    work.with_options(step_operator="nowhere")(folder)


@pipeline
def empty(folder: str) -> None:
    """Calls no step."""
