"""Which steps fit beside each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.host.admission import Capacity, Demand, SharedSandbox


def shared(capacity: Capacity, limit: int | None = None, **demands: Demand) -> SharedSandbox:
    return SharedSandbox(capacity, demands, limit)


def test_tenths_of_a_core_fill_the_sandbox_exactly() -> None:
    steps = {f"s{number}": Demand(cpu=0.1) for number in range(11)}
    sandbox = shared(Capacity(cpu=1.0), **steps)
    for number in range(10):
        assert sandbox.fits(f"s{number}")
        sandbox.take(f"s{number}")
    assert not sandbox.fits("s10")


def test_a_step_larger_than_the_sandbox_runs_alone() -> None:
    sandbox = shared(Capacity(memory=100), big=Demand(memory=500), small=Demand(memory=1), none=Demand())
    sandbox.take("small")
    assert not sandbox.fits("big")
    sandbox.give("small")
    assert sandbox.fits("big")
    sandbox.take("big")
    assert not sandbox.fits("small")
    assert not sandbox.fits("none")


def test_nothing_known_of_the_sandbox_limits_nothing() -> None:
    sandbox = shared(Capacity(), a=Demand(64, 1 << 20, 8), b=Demand(64, 1 << 20, 8))
    sandbox.take("a")
    assert sandbox.fits("b")
    assert sandbox.gpus_of("a") is None


def test_gpus_come_back_and_are_given_out_again() -> None:
    sandbox = shared(Capacity(gpus=3), a=Demand(gpus=2), b=Demand(gpus=1), c=Demand(gpus=2), d=Demand())
    sandbox.take("a")
    sandbox.take("b")
    assert (sandbox.gpus_of("a"), sandbox.gpus_of("b"), sandbox.gpus_of("d")) == ((0, 1), (2,), ())
    assert not sandbox.fits("c")
    sandbox.give("a")
    assert sandbox.fits("c")
    sandbox.take("c")
    assert sandbox.gpus_of("c") == (0, 1)


@given(
    demands=st.lists(
        st.builds(Demand, st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.integers(0, 300), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    ),
    order=st.randoms(use_true_random=False),
)
def test_what_runs_together_is_covered_or_runs_alone(demands: list[Demand], order) -> None:
    steps = {str(number): demand for number, demand in enumerate(demands)}
    sandbox = SharedSandbox(Capacity(2.0, 256, 2), steps, 3)
    running: set[str] = set()
    for _ in range(40):
        step = order.choice(list(steps))
        if step in running:
            sandbox.give(step)
            running.discard(step)
        elif sandbox.fits(step):
            sandbox.take(step)
            running.add(step)
        held = [index for name in running for index in sandbox.gpus_of(name) or ()]
        assert len(held) == len(set(held))
        assert len(running) <= 3
        together = [steps[name] for name in running]
        assert len(running) <= 1 or (
            sum(demand.cpu for demand in together) <= 2.0
            and sum(demand.memory for demand in together) <= 256
            and sum(demand.gpus for demand in together) == len(held) <= 2
        )
