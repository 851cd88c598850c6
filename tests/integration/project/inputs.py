"""A pipeline whose steps are given by name, so that bad input can be laid on any of them."""

from __future__ import annotations

from zenml import pipeline, step


@step(enable_cache=False)
def work(folder: str) -> int:
    """Touches a file, by which a test sees that it ran after all."""
    with open(f"{folder}/ran", "a") as file:
        file.write("x")
    return 1


@pipeline
def given(folder: str, names: list[str]) -> None:
    for name in names:
        work(folder, id=name)


@pipeline(dynamic=True)
def dynamic(folder: str) -> None:
    work(folder)
