"""How long planning takes: 1,000 and 10,000 steps with settings, resources and retries.

Once with twenty kinds of steps, as a loop in a pipeline function makes them, and once with no two alike.
"""

from __future__ import annotations

import gc
import time

from zenml.models import PipelineSnapshotResponse

from bridge.planning.layers import ComponentSettings
from bridge.planning.translate import translate
from tests.unit.snapshots import NAME, StepInput, snapshot

GPUS = ("T4", "L4", "A100", "H100")


def chain(steps: int, kinds: int) -> PipelineSnapshotResponse:
    """A snapshot of that many steps, each downstream of the two before it."""
    return snapshot(
        {
            f"step_{number}": StepInput(
                upstream=[f"step_{before}" for before in range(max(0, number - 2), number)],
                settings={
                    "gpu": GPUS[number % 4],
                    "timeout": 1 + number % kinds,
                    "tags": {"kind": str(number % kinds)},
                },
                resources={"cpu_count": 1 + number % 8, "memory": f"{1 + number % 64}GiB"},
                retry={"max_retries": 3, "delay": 5, "backoff": 2},
            )
            for number in range(steps)
        },
        settings={"execution_mode": "per_step", "max_parallelism": 16},
    )


def seconds(of: PipelineSnapshotResponse, repeats: int = 3) -> float:
    """The best of ``repeats``, in seconds of processor time: planning waits for nothing, so on an idle machine that
    is what the clock on the wall says, and on a busy one it is still what planning takes."""
    best = float("inf")
    gc.collect()
    gc.freeze()  # else the collector walks through the input, which is far larger than the plan, and is measured
    for _ in range(repeats):
        begin = time.process_time()
        translate(of, component=ComponentSettings({}), component_name=NAME, stack_name="bench")
        best = min(best, time.process_time() - begin)
    gc.unfreeze()
    return best


def measure() -> dict[str, float]:
    """Return the figures by name, in seconds, and the ratios of 10,000 to 1,000 steps."""
    figures = {}
    for name, kinds in (("alike", 20), ("distinct", 10_000)):
        small, large = seconds(chain(1_000, kinds)), seconds(chain(10_000, kinds))
        figures |= {
            f"translate_{name}_1000_s": small,
            f"translate_{name}_10000_s": large,
            f"translate_{name}_ratio": large / small,
        }
    return figures


if __name__ == "__main__":
    for name, figure in measure().items():
        print(f"{name}\t{figure:.3f}")
