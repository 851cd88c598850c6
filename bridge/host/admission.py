"""Which steps may run side by side in one sandbox. Pure: numbers in, yes or no out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What a step asks for: cores, MiB, number of GPUs. 0 where it asks for nothing."""

    cpu: float = 0.0
    memory: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a sandbox has, in the same units; None where that isn't known and so doesn't limit."""

    cpu: float | None = None
    memory: int | None = None
    gpus: int | None = None


class SharedSandbox:
    """Admits a step while the sandbox covers what the running steps ask for together.

    A step that asks for more than the sandbox has runs alone. Steps that ask for nothing count nothing. GPUs
    are assigned by index. A :class:`bridge.flow_run.ready.Admission`.
    """

    def __init__(self, capacity: Capacity, demands: Mapping[str, Demand], limit: int | None) -> None:
        self._capacity = capacity
        self._demands = demands
        self._limit = limit
        self._running: set[str] = set()
        self._free_gpus = list(range(capacity.gpus or 0))
        self._held_gpus: dict[str, tuple[int, ...]] = {}

    def fits(self, step: str) -> bool:
        """Whether ``step`` may start beside those that run."""
        if not self._running:
            return True
        if self._limit is not None and len(self._running) >= self._limit:
            return False
        together = [self._demands[name] for name in (*self._running, step)]
        capacity = self._capacity
        return (
            _covers(capacity.cpu, sum(demand.cpu for demand in together))
            and _covers(capacity.memory, sum(demand.memory for demand in together))
            and _covers(capacity.gpus, sum(demand.gpus for demand in together))
        )

    def take(self, step: str) -> None:
        """``step`` starts: it holds its share and its GPUs."""
        self._running.add(step)
        wanted = self._demands[step].gpus
        self._held_gpus[step] = tuple(self._free_gpus[:wanted])
        del self._free_gpus[:wanted]

    def give(self, step: str) -> None:
        """``step`` ended or waits."""
        self._running.discard(step)
        self._free_gpus = sorted([*self._free_gpus, *self._held_gpus.pop(step, ())])

    def gpus_of(self, step: str) -> tuple[int, ...] | None:
        """The indices of the GPUs that ``step`` holds now; None where the sandbox's number isn't known."""
        return None if self._capacity.gpus is None else self._held_gpus.get(step, ())


def _covers(capacity: float | None, asked: float) -> bool:
    # Sums of decimal fractions such as 0.1 don't come out even; a millionth of a core is nobody's.
    return capacity is None or asked <= capacity + 1e-6
