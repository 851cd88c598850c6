"""Which steps of a run may share a sandbox: what is equal in what they ask for. Standard library only.

A process that only calls a step operator has nothing more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from bridge.plan import Plan, SandboxSpec

LIFETIME_SECONDS = 86400
"""How long a warm sandbox may live: Modal's limit. As a step's timeout it means as long as the sandbox lives."""


def kind_of(spec: SandboxSpec) -> SandboxSpec:
    """What steps that may share a sandbox have in common: all of the spec but how long they may take or wait."""
    return replace(spec, timeout=LIFETIME_SECONDS, capacity_timeout=SandboxSpec().capacity_timeout)


def sharing(plan: Plan) -> dict[str, SandboxSpec]:
    """The steps that others may share a sandbox with, and the kind they have in common.

    A step whose spec no other step has gets a sandbox of its own; so does one that may write to a volume, since what
    it wrote would reach nobody before that sandbox ends.
    """
    kinds = {step.name: kind_of(step.sandbox) for step in plan.steps}
    number = Counter(kinds.values())
    return {name: kind for name, kind in kinds.items() if number[kind] > 1 and _only_reads(kind)}


def patience(plan: Plan) -> dict[SandboxSpec, int]:
    """How many seconds a sandbox of each kind, started early, may wait for its machine: as the most patient step."""
    found: dict[SandboxSpec, int] = {}
    for step in plan.steps:
        kind = kind_of(step.sandbox)
        found[kind] = max(found.get(kind, 0), step.sandbox.capacity_timeout)
    return found


def _only_reads(kind: SandboxSpec) -> bool:
    return all(mount.read_only for mount in kind.volumes)
