"""Graphs to measure with, and the time that a list scheduler would take for them."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Mapping, Sequence

Graph = dict[str, tuple[str, ...]]
"""The upstream steps of each step, upstream before downstream."""

WINDOW = 200
"""A step's upstream steps are among the last this many before it: neither one long chain nor all at once."""


def random_graph(steps: int, edges: int, seed: int = 1) -> Graph:
    """Return a graph of that many steps and edges, the same one for the same arguments."""
    chance = random.Random(seed)
    chosen: dict[int, set[int]] = {number: set() for number in range(steps)}
    left = edges
    while left:
        step = chance.randrange(1, steps)
        above = chance.randrange(max(0, step - WINDOW), step)
        if above not in chosen[step]:
            chosen[step].add(above)
            left -= 1
    return {_name(step): tuple(_name(above) for above in sorted(many)) for step, many in chosen.items()}


def independent(steps: int) -> Graph:
    """Return a graph without edges."""
    return {_name(step): () for step in range(steps)}


def list_schedule(graph: Graph, seconds: Mapping[str, float], slots: int | None) -> float:
    """Return the seconds that the graph takes on ``slots`` machines that lose no time between two steps.

    A list scheduler by longest chain first, ready steps only: what :mod:`bridge.flow_run.ready` would do if everything
    but the steps took no time at all.
    """
    downstream: dict[str, list[str]] = {step: [] for step in graph}
    for step, above in graph.items():
        for name in above:
            downstream[name].append(step)
    chain = {}
    for step in reversed(graph):
        chain[step] = seconds[step] + max((chain[below] for below in downstream[step]), default=0.0)
    waiting = {step: len(above) for step, above in graph.items()}
    tickets = itertools.count()
    ready = [(-chain[step], next(tickets), step) for step, missing in waiting.items() if not missing]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and (slots is None or len(running) < slots):
            step = heapq.heappop(ready)[2]
            heapq.heappush(running, (now + seconds[step], step))
        now, ended = heapq.heappop(running)
        for step in downstream[ended]:
            waiting[step] -= 1
            if not waiting[step]:
                heapq.heappush(ready, (-chain[step], next(tickets), step))
    return now


def edges(graph: Mapping[str, Sequence[str]]) -> int:
    """The number of edges."""
    return sum(len(above) for above in graph.values())


def _name(step: int) -> str:
    return f"step_{step:05d}"
