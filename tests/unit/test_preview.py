"""What `modal-prefect plan` prints of a plan."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, RetryPolicy, SandboxSpec, StepPlan, VolumeMount
from bridge.planning.preview import as_text, describe, stages
from bridge.planning.prices import NoPrices, Prices, an_hour

IMAGE = "registry.example.com/ml:1"
SMALL = SandboxSpec(image=IMAGE, resources=Resources(2.0, 4096), region=("us-east",), secrets=("hf",))
LARGE = replace(SMALL, resources=Resources(gpu=Gpu(("H100", "A100"), 2)), volumes=(VolumeMount("/data", "datasets"),))
NARROW = replace(LARGE, outbound_cidrs=("10.0.0.0/8",), outbound_domains=("x.org",))


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


def shown(
    plan: Plan = PLAN, runner: str = "modal", *, can_share: bool = True, prices: Prices | NoPrices | None = None
) -> str:
    return as_text(describe(plan, runner, can_share=can_share, prices=prices))


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


PRICES = Prices(Decimal("0.1419"), Decimal("0.024"), {"h100": Decimal("3.95")})


def test_prices_an_hour() -> None:
    warm, own = shown(prices=PRICES).split("Warm sandboxes 1")[1].split("A sandbox of its own: ")
    assert "cost:    at least $0.3798 an hour\n" in warm  # 2 x 0.1419 + 4 x 0.024
    assert "cost:    at least $7.9000 with H100 an hour; not counted: cpu that it uses, memory that it uses," in own
    assert "A100 (no price is known)" in own
    assert own.rstrip().endswith("The run's table in Prefect shows what it costs.")


def test_without_prices_it_says_why() -> None:
    text = shown(prices=NoPrices("Modal can't be reached"))
    assert "Prices: none, Modal can't be reached. `modal billing rates`" in text
    assert "cost:" not in text


def test_a_gpu_type_has_the_price_of_its_other_spelling() -> None:
    prices = Prices(gpus={"a100_40gb": Decimal(2), "a100_80gb": Decimal(3), "a10g": Decimal(1)})
    for kind, dollars in (("A100", 2), ("A100-40GB", 2), ("a100-80gb", 3), ("A10", 1), ("A10G", 1)):
        assert an_hour(Resources(1.0, 1024, Gpu((kind,), 4)), prices).startswith(f"at least ${4 * dollars}.0000 with")


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
