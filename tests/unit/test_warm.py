"""Which steps share warm sandboxes, and what those are made of."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import NoReturn

from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, SandboxSpec, StepPlan, VolumeMount
from bridge.warming.kinds import LIFETIME_SECONDS, kind_of, patience, sharing
from bridge.warming.warm_step import WarmHost

SPEC = SandboxSpec(image="registry/ml:1", resources=Resources(gpu=Gpu(("H100",), 1)))


def plan(**specs: SandboxSpec) -> Plan:
    steps = tuple(StepPlan(name, (), (), spec) for name, spec in specs.items())
    return Plan("p", "snapshot", "stack", Mode.PER_STEP, FailureMode.CONTINUE_ON_FAILURE, steps)


def test_steps_share_whatever_they_may_take() -> None:
    patient = replace(SPEC, timeout=60, capacity_timeout=3600)
    assert set(sharing(plan(one=SPEC, two=patient, other=replace(SPEC, image="registry/ml:2")))) == {"one", "two"}


def test_what_keeps_steps_apart() -> None:
    """Each asks for one thing that no other one asks for."""
    others = {
        "cpu": replace(SPEC, resources=replace(SPEC.resources, cpu=2.0)),
        "memory": replace(SPEC, resources=replace(SPEC.resources, memory=2048)),
        "gpu": replace(SPEC, resources=Resources(gpu=Gpu(("H100",), 2))),
        "region": replace(SPEC, region=("eu",)),
        "cloud": replace(SPEC, cloud="aws"),
        "environment": replace(SPEC, modal_environment="staging"),
        "secrets": replace(SPEC, secrets=("hf",)),
        "tags": replace(SPEC, tags=(("team", "a"),)),
        "network": replace(SPEC, block_network=True),
    }
    assert set(sharing(plan(one=SPEC, two=SPEC, **others))) == {"one", "two"}
    for name, spec in others.items():
        assert set(sharing(plan(one=SPEC, two=spec, three=spec))) == {"two", "three"}, name


async def test_a_step_enters_a_sandbox_that_lives_as_long_as_it_may_take() -> None:
    async def never() -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    host = WarmHost(never(), "socket", since=time.monotonic() - (LIFETIME_SECONDS - 100))
    assert host.has_time_for(99)
    assert not host.has_time_for(101)
    assert not host.has_time_for(LIFETIME_SECONDS - 1)
    assert host.has_time_for(LIFETIME_SECONDS), "it takes what it gets"
    await host.end()
    await host.gone()
    assert not host.has_time_for(1)
    assert not host.has_time_for(LIFETIME_SECONDS)


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
