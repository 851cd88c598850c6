"""What a process did from the call of the pipeline to its first sandbox, from :mod:`sampling`'s samples.

The main thread says it: while it waits for another thread, what it waits for names the part. "Ours" is what belongs
to the orchestrator, also where that is ZenML's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

PARTS = {
    "zenml_imports": "ZenML: imports (its integrations, Git)",
    "zenml_requests": "ZenML: its server",
    "zenml_rest": "ZenML: compiling and the rest",
    "ours_imports": "orchestrator: imports (of Prefect and Modal's SDK, as far as they weren't made meanwhile)",
    "ours_requests": "orchestrator: ZenML's server",
    "ours_prefect": "orchestrator: Prefect's API and its engine",
    "ours_check": "orchestrator: logging in to Modal, before anything is started",
    "ours_modal": "orchestrator: app, image and sandbox on Modal",
    "ours_rest": "orchestrator: the rest",
}


def breakdown(samples: Mapping[str, Any], begin: float, until: float) -> dict[str, float]:
    """Seconds for each of :data:`PARTS`, and of all that are ours together, between two moments."""
    found: Counter[str] = Counter(dict.fromkeys(PARTS, 0.0))
    before = begin
    for now, stacks in samples["at"]:
        if "MainThread" in stacks:
            found[part(samples["stacks"][stacks["MainThread"]])] += min(now, until) - before
        before = now
        if now >= until:
            break
    ours = sum(seconds for name, seconds in found.items() if name.startswith("ours"))
    return {**found, "ours_s": ours}


def part(stack: Sequence[str]) -> str:
    """The part that a stack of the main thread belongs to."""

    def within(*pieces: str) -> bool:
        return any(piece in frame for frame in stack for piece in pieces)

    if not within("/bridge/", "/modal_orchestrator.py"):
        if within("frozen importlib"):
            return "zenml_imports"
        return "zenml_requests" if within("rest_zen_store.py:") else "zenml_rest"
    if within("frozen importlib") or (stack[-2].endswith("_base.py:result") and "/orchestrator.py:" in stack[-3]):
        return "ours_imports"
    if within("rest_zen_store.py:"):
        return "ours_requests"
    if within("/submission.py:check_runner"):
        return "ours_check"
    if within("/own_loop.py:on_own_loop", "/sandbox_utils.py:"):
        return "ours_modal"
    return "ours_prefect" if within("/prefect/") else "ours_rest"
