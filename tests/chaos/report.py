"""What a series of cases showed, as counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.case import KINDS, Case
from tests.chaos.seen import Seen

ENOUGH = 50
"""From so many cases on, a kind of fault that never struck a running step is itself a failure."""


@dataclass
class Report:
    """Counts of a series. ``of`` are the kinds of faults that there are in it."""

    of: tuple[str, ...] = KINDS
    cases: int = 0
    steps: int = 0
    attempts: int = 0
    sandboxes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    """By kind of fault: how often it struck a running step."""
    failed: dict[int, list[str]] = field(default_factory=dict)
    """By seed: what wasn't as it must be."""

    def add(self, case: Case, seen: Seen, found: list[str]) -> None:
        self.cases += 1
        self.steps += len(case.steps)
        self.attempts += sum(len(attempts) for attempts in seen.attempts.values())
        self.sandboxes += len(seen.sandboxes)
        self.kinds[case.kind] += 1
        self.ends[seen.run or "none"] += 1
        self.struck.update(strike.kind for strike in seen.strikes if strike.running and not strike.refused)
        if found:
            self.failed[case.seed] = found

    @property
    def enough(self) -> bool:
        """Whether there were cases enough to say of a kind of fault that it never struck."""
        return self.cases >= ENOUGH

    @property
    def never(self) -> list[str]:
        """The kinds of faults that never struck a running step, where there were cases enough."""
        return [kind for kind in self.of if not self.struck[kind]] if self.enough else []

    @property
    def good(self) -> bool:
        return not self.failed and not self.never

    def as_json(self) -> dict[str, object]:
        return {
            "cases": self.cases,
            "steps": self.steps,
            "attempts": self.attempts,
            "sandboxes": self.sandboxes,
            "kinds": dict(self.kinds),
            "ends": dict(self.ends),
            "struck": {kind: self.struck[kind] for kind in self.of},
            "failed": {str(seed): found for seed, found in self.failed.items()},
            "enough": self.enough,
            "never struck": self.never,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.cases} runs ({_counts(self.kinds)}), {self.steps} steps, {self.attempts} attempts, "
            f"{self.sandboxes} sandboxes; they ended {_counts(self.ends)}",
            "struck a running step: " + _counts(Counter({kind: self.struck[kind] for kind in self.of})),
        ]
        if not self.enough:
            lines.append(f"too few runs to judge by kinds that never struck: {self.cases}, of {ENOUGH}")
        if self.never:
            lines.append("never struck a running step: " + ", ".join(self.never))
        for seed, found in self.failed.items():
            lines += [f"seed {seed}: {sentence}" for sentence in found]
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counter.items())
