"""Which steps share warm sandboxes, and what those are made of."""

from __future__ import annotations

from dataclasses import replace

from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, SandboxSpec, StepPlan, VolumeMount
from bridge.warm import kind_of, patience, sharing

SPEC = SandboxSpec(image="registry/ml:1", resources=Resources(gpu=Gpu(("H100",), 1)))


def plan(**specs: SandboxSpec) -> Plan:
    steps = tuple(StepPlan(name, (), (), spec) for name, spec in specs.items())
    return Plan("p", "snapshot", "stack", Mode.PER_STEP, FailureMode.CONTINUE_ON_FAILURE, steps)


def test_steps_share_whatever_they_may_take() -> None:
    patient = replace(SPEC, timeout=60, capacity_timeout=3600)
    assert set(sharing(plan(one=SPEC, two=patient, other=replace(SPEC, image="registry/ml:2")))) == {"one", "two"}


def test_steps_that_only_read_from_volumes_share() -> None:
    reads = replace(SPEC, volumes=(VolumeMount("/models", "models", read_only=True),))
    writes = replace(SPEC, volumes=(VolumeMount("/models", "models"),))
    both = replace(SPEC, volumes=(*reads.volumes, VolumeMount("/out", "out")))
    specs = {"a": reads, "b": reads, "c": writes, "d": writes, "e": both, "f": both}
    assert set(sharing(plan(**specs))) == {"a", "b"}


def test_a_sandbox_that_is_started_early_waits_as_long_as_the_most_patient_step() -> None:
    specs = {"one": replace(SPEC, capacity_timeout=30), "two": replace(SPEC, capacity_timeout=3600)}
    assert patience(plan(**specs)) == {kind_of(SPEC): 3600}
    assert patience(plan(one=specs["one"])) == {kind_of(SPEC): 30}
