"""What is measured: each function returns figures by name, ready for the table and the JSON."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from tests.bench.graphs import Graph, edges, independent, list_schedule, random_graph
from tests.bench.rig import Rig

Row = dict[str, float | int | str]


def ready_queue(
    rig: Rig, *, steps: int, edge_count: int, seconds: float, limit: int, workers: int = 1, once: bool = False
) -> Row:
    """How long a graph takes at ``limit`` steps at once, against a list scheduler that loses no time.

    With ``once`` sandboxes report to ZenML at their end alone, which leaves its server time for the flow.
    """
    graph = random_graph(steps, edge_count)
    snapshot_id = rig.snapshot(f"ready-{steps}", graph, limit)
    if workers > 1:
        rig.use_workers(workers)
    figures = rig.run(snapshot_id, seconds, once=once)
    _check(rig, figures, steps)
    lives = {step: times[-1] - times[0] for step, times in figures["sandboxes"].items()}
    work = _work_seconds(figures)
    return {
        "steps": steps,
        "edges": edges(graph),
        "limit": limit,
        "step_s": seconds,
        "most_running": figures["most_running"],
        "wall_s": work,
        "ideal_s": _ideal(graph, seconds, limit),
        "ratio": work / _ideal(graph, seconds, limit),
        # What the flow itself adds: against sandboxes that live for as long as these really did.
        "ratio_own": work / list_schedule(graph, lives, limit),
        "sandbox_median_s": median(lives.values()),
        "begin_median_s": median(times[1] - times[0] for times in figures["sandboxes"].values()),
        "flow_s": figures["flow_seconds"],
        **_processor(figures, steps),
    }


def all_at_once(rig: Rig, *, steps: int, workers: int = 1) -> Row:
    """What ``steps`` steps that run at one moment cost the flow process, beyond what it is before they start."""
    snapshot_id = rig.snapshot(f"at-once-{steps}", independent(steps), None)
    if workers > 1:
        rig.use_workers(workers)
    figures = rig.run(snapshot_id, 1.0, meet=steps)
    _check(rig, figures, steps)
    idle, running, end = figures["idle"], figures["all_running"], figures["end"]
    return {
        "steps": steps,
        "most_running": figures["most_running"],
        "idle_rss_mb": idle["rss"],
        "added_rss_mb": running["rss"] - idle["rss"],
        "added_peak_mb": end["peak"] - idle["rss"],
        "added_threads": running["threads"] - idle["threads"],
        "added_fds": running["fds"] - idle["fds"],
        **_processor(figures, steps),
    }


def _check(rig: Rig, figures: dict[str, Any], steps: int) -> None:
    """A figure counts only for a run that both sides call completed, every step of it."""
    status, states = rig.states(figures, steps)
    if (figures["state"], status, states) != ("Completed", "completed", Counter({"Completed": steps})):
        raise RuntimeError(f"The run to be measured ended as {figures['state']}, {status}, {dict(states)}")


def _ideal(graph: Graph, seconds: float, limit: int) -> float:
    return list_schedule(graph, dict.fromkeys(graph, seconds), limit)


def _work_seconds(figures: dict[str, Any]) -> float:
    """From the first sandbox's beginning to the last one's end."""
    times = figures["sandboxes"].values()
    return float(max(each[-1] for each in times) - min(each[0] for each in times))


def _processor(figures: dict[str, Any], steps: int) -> Row:
    """Milliseconds of processor time a step, by process."""
    flow = figures["end"]["cpu"] - figures["idle"]["cpu"]
    spent = {"flow": flow, "sandboxes": figures["outside_cpu"], **figures["servers"]}
    return {f"{name.replace(' ', '_')}_cpu_ms": 1000 * seconds / steps for name, seconds in spent.items()}
