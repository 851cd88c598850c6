"""The plan is data: frozen, comparable, printable, and right after a change to a copy of it."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, RetryPolicy, SandboxSpec, StepPlan


def step(name: str, *upstream: str) -> StepPlan:
    return StepPlan(name, upstream, ("step",), SandboxSpec(resources=Resources(1.5, 512, Gpu(("A100", "H100"), 2))))


def plan(*steps: StepPlan) -> Plan:
    return Plan("churn", "snapshot", "prod", Mode.PER_STEP, FailureMode.FAIL_FAST, steps, max_parallelism=2)


def test_frozen_and_hashable() -> None:
    made = plan(step("a"), step("b", "a"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.pipeline = "other"  # type: ignore[misc]
    assert made == plan(step("a"), step("b", "a"))
    assert hash(made) == hash(plan(step("a"), step("b", "a")))
    assert made != plan(step("a"))
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_changed_copy_knows_its_own_steps() -> None:
    made = plan(step("a"), step("b", "a"))
    fewer = dataclasses.replace(made, steps=made.steps[:1])
    with pytest.raises(KeyError):
        fewer.step("b")
    changed = dataclasses.replace(made, steps=(dataclasses.replace(made.steps[0], caching=False),))
    assert not changed.step("a").caching
    assert made.step("a").caching


def test_prints() -> None:
    made = plan(step("a"), dataclasses.replace(step("b", "a"), retry=RetryPolicy((0, 5))))
    assert str(made).splitlines() == [
        "churn: 2 steps, per_step, fail_fast, at most 2 at once",
        "  a [1.5 cpu, 512 MiB, 2 x A100 or H100]",
        "  b after a [1.5 cpu, 512 MiB, 2 x A100 or H100, 2 retries]",
    ]
    assert str(dataclasses.replace(step("c"), retry=RetryPolicy((5,)))).endswith(", 1 retry]")
    assert str(Resources()) == "default"
    assert made.upstream == {"a": (), "b": ("a",)}


def test_which_sandboxes_and_where() -> None:
    here, there = SandboxSpec(), SandboxSpec(modal_environment="eu", timeout=60)
    others = [dataclasses.replace(there, timeout=90), there]
    steps = [dataclasses.replace(step(str(n)), sandbox=spec) for n, spec in enumerate([there, *others])]
    made = plan(*steps)
    assert made.sandbox_specs == (there, others[0])
    assert made.modal_environments == ("eu",), "not the profile's, in which none of them is"
    shared = dataclasses.replace(made, mode=Mode.PIPELINE, sandbox=here)
    assert (shared.sandbox_specs, shared.modal_environments) == ((here,), (None,))
