"""What `modal-prefect plan` prints of a plan."""

from __future__ import annotations

from dataclasses import replace

from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, RetryPolicy, SandboxSpec, StepPlan
from bridge.preview import as_text, describe, stages

IMAGE = "registry.example.com/ml:1"
SMALL = SandboxSpec(image=IMAGE, resources=Resources(2.0, 4096), region=("us-east",), secrets=("hf",))
LARGE = replace(SMALL, resources=Resources(gpu=Gpu(("H100", "A100"), 2)), volumes=(("/data", "datasets"),))


def step(name: str, *upstream: str, spec: SandboxSpec = SMALL, **more: object) -> StepPlan:
    return StepPlan(name, upstream, ("step", "--name", f"{name} x"), spec, **more)  # type: ignore[arg-type]


PLAN = Plan(
    "digits",
    "5f1c",
    "modal",
    Mode.PER_STEP,
    FailureMode.FAIL_FAST,
    (
        step("load"),
        step("left", "load", retry=RetryPolicy((5.0, 10.0))),
        step("right", "load", spec=LARGE, concurrency_limit="gpus", infrastructure_retries=1),
        step("join", "left", "right", caching=False, step_operator="gpu-box"),
    ),
    max_parallelism=2,
)


def shown(plan: Plan = PLAN, runner: str = "modal", *, can_share: bool = True) -> str:
    return as_text(describe(plan, runner, can_share=can_share))


def test_the_graph() -> None:
    assert stages(PLAN) == [["load"], ["left", "right"], ["join"]]
    text = shown()
    assert "digits: 4 steps, mode per_step, runner modal" in text
    assert "fail_fast, at most 2 steps at once" in text
    assert "  3  join  <- left, right" in text


def test_who_shares_a_sandbox_and_who_does_not() -> None:
    shared, own = shown().split("Warm sandboxes 1")[1].split("A sandbox of its own: ")
    assert shared.startswith(": 3 steps take turns, idle ones end after 60 s")
    assert own.startswith("right\n")
    for name in ("load", "left", "join"):
        assert f"  {name}: <bridge> step --name '{name} x'" in shared
    assert "machine: 2 cpu, 4096 MiB" in shared
    assert "machine: 2 x H100 or A100" in own
    assert "datasets at /data" in own


def test_without_warm_sandboxes_each_step_has_its_own() -> None:
    for plan, can_share in ((replace(PLAN, warm=False), True), (PLAN, False)):
        text = shown(plan, can_share=can_share)
        assert text.count("A sandbox of its own") == 4
        assert "Warm" not in text


def test_everything_that_a_step_asks_for_is_there() -> None:
    text = shown()
    for words in (
        f"image:   {IMAGE}",
        "us-east, Modal environment of the profile",
        "secrets: hf",
        "2 retries after 5, 10 s",
        "holds a slot of the Prefect limit gpus",
        "fresh sandboxes for a lost one: 1",
        "runs in the step operator gpu-box, never from the cache",
    ):
        assert words in text


def test_a_whole_pipeline_in_one_sandbox() -> None:
    text = shown(replace(PLAN, mode=Mode.PIPELINE, sandbox=LARGE, command=("pipeline", "--snapshot", "5f1c")))
    assert "One sandbox for all steps\n  machine: 2 x H100 or A100" in text
    assert "command: <bridge> pipeline --snapshot 5f1c" in text
    assert "  left: 2 retries after 5, 10 s" in text
    assert "A sandbox of its own" not in text


def test_a_laptop_has_no_prices_and_no_image() -> None:
    laptop = replace(PLAN, steps=(step("load", spec=SandboxSpec()),))
    text = shown(laptop, "process")
    assert "Prices" not in text
    assert "this machine's Python" in text
    assert "Modal environment" not in text
    assert "digits: 1 step, mode" in text


def test_a_dynamic_pipeline() -> None:
    command = ("dynamic", "--snapshot-id", "5f1c")
    plan = replace(
        PLAN, mode=Mode.DYNAMIC, steps=(), sandbox=SMALL, command=command, warm=False, concurrency_limit="gpus"
    )
    text = shown(plan)
    assert "digits: steps known as it runs, mode dynamic, runner modal" in text
    assert "One sandbox for the pipeline's function and the inline steps" in text
    assert "<bridge> dynamic --snapshot-id 5f1c" in text
    assert "each isolated step holds a slot of the Prefect limit gpus" in text
    assert "Graph" not in text
