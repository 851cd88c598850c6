"""How long planning takes: 1,000 and 10,000 steps, each with settings, resources and retries of its own."""

from __future__ import annotations

import time

from zenml.models import PipelineSnapshotResponse

from bridge.translate import translate
from tests.unit.snapshots import NAME, StepInput, snapshot

GPUS = ("T4", "L4", "A100", "H100")


def chain(steps: int) -> PipelineSnapshotResponse:
    """A snapshot of that many steps, each downstream of two before it; every step has its own timeout."""
    return snapshot(
        {
            f"step_{number}": StepInput(
                upstream=[f"step_{before}" for before in range(max(0, number - 2), number)],
                settings={"gpu": GPUS[number % 4], "timeout": 1 + number, "tags": {"number": str(number)}},
                resources={"cpu_count": 1 + number % 8, "memory": f"{1 + number % 64}GiB"},
                retry={"max_retries": 3, "delay": 5, "backoff": 2},
            )
            for number in range(steps)
        },
        settings={"execution_mode": "per_step", "max_parallelism": 16},
    )


def seconds(of: PipelineSnapshotResponse, repeats: int = 3) -> float:
    """The best of ``repeats``: what translating takes when nothing else runs."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        translate(of, component={}, component_name=NAME, stack_name="bench")
        best = min(best, time.perf_counter() - begin)
    return best


def measure() -> dict[str, float]:
    """Return the figures by name: seconds for 1,000 and 10,000 steps, and their ratio."""
    small, large = seconds(chain(1_000)), seconds(chain(10_000))
    return {"translate_1000_s": small, "translate_10000_s": large, "translate_ratio": large / small}


if __name__ == "__main__":
    for name, figure in measure().items():
        print(f"{name}\t{figure:.3f}")
