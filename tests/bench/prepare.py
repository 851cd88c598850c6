"""A process of its own: makes a stack and the snapshot of a pipeline with a given graph, and answers its id."""

from __future__ import annotations

from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import StackComponentType

from tests.bench.answers import answer, asked
from tests.bench.graphs import Graph

STACK = "bench"


@step
def work() -> None:
    """Never called: the scripted runner plays the sandboxes."""


def make_stack() -> None:
    """Register a stack of ours with the process runner, the one that needs no account; and activate it."""
    client = Client()
    if not client.list_stacks(name=STACK).items:
        client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
        client.create_stack_component(STACK, "modal-prefect", StackComponentType.ORCHESTRATOR, {"runner": "process"})
        components: dict[StackComponentType, str] = {
            StackComponentType.ORCHESTRATOR: STACK,
            StackComponentType.ARTIFACT_STORE: "default",
        }
        client.create_stack(STACK, components=components)
    client.activate_stack(STACK)


def make_snapshot(name: str, graph: Graph, limit: int | None) -> str:
    """Store the snapshot of a pipeline with that graph, one call of :func:`work` for each of its steps."""

    @pipeline(name=name, enable_cache=False)
    def of_graph() -> None:
        for step_name, above in graph.items():
            work(id=step_name, after=list(above))

    settings = {"execution_mode": "per_step", "max_parallelism": limit}
    prepared = of_graph.with_options(settings={"orchestrator": settings})
    return str(prepared.create_snapshot(name=name).id)


if __name__ == "__main__":
    wanted = asked()
    make_stack()
    answer(make_snapshot(wanted["name"], wanted["graph"], wanted["limit"]))
