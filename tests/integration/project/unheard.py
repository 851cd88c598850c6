"""A pipeline whose steps need a package that this environment hasn't got."""

from __future__ import annotations

from zenml import pipeline, step


@step(enable_cache=False)
def greet(folder: str, who: str) -> str:
    import unheard_of  # type: ignore[import-not-found]
    from shapes import trace

    said = f"{unheard_of.greeting} {who}"
    trace(folder, "begin", said=said)
    return said


@step(enable_cache=False)
def answer(folder: str, said: str) -> str:
    from shapes import trace

    trace(folder, "begin", said=said)
    return f"{said}!"


@pipeline
def greeting(folder: str, who: str = "world") -> None:
    answer(folder, greet(folder, who))
