"""The ready queue in virtual time: as soon as possible, never too many, and every step gets its fate."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.flow_run.ready import Admission, Fate, GraphRun, NotRun, Pass, Slots
from bridge.plan import FailureMode
from tests.unit import virtual_time

CONTINUE, STOP, FAST = FailureMode.CONTINUE_ON_FAILURE, FailureMode.STOP_ON_FAILURE, FailureMode.FAIL_FAST
Graph = Mapping[str, Sequence[str]]


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Log:
    """What happened when, in virtual seconds."""

    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, NotRun] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    running: int = 0
    most: int = 0


class Simulation:
    """Runs a graph whose steps take ``seconds`` (default 1) and end in ``fates`` (default done)."""

    def __init__(
        self,
        graph: Graph,
        *,
        limit: int | None = None,
        mode: FailureMode = CONTINUE,
        seconds: Mapping[str, float] | None = None,
        fates: Mapping[str, Fate] | None = None,
        finished: Sequence[str] = (),
        begun: Sequence[str] = (),
        admission: Admission | None = None,
        execute: Callable[[str, Pass], object] | None = None,
    ) -> None:
        self.log = Log()
        self.seconds = seconds or {}
        self.fates = fates or {}
        self.run = GraphRun(
            graph,
            execute=self.execute,
            not_run=self.report,
            admission=admission or Slots(limit),
            failure_mode=mode,
            finished=finished,
            begun=begun,
        )

    async def execute(self, step: str, permit: Pass) -> Fate:
        assert step not in self.log.started, f"{step} started twice"
        self.log.started[step] = now()
        self.log.running += 1
        self.log.most = max(self.log.most, self.log.running)
        try:
            await asyncio.wait_for(permit.kill.wait(), self.seconds.get(step, 1.0))
            return Fate.STOPPED
        except asyncio.TimeoutError:
            return self.fates.get(step, Fate.DONE)
        finally:
            self.log.running -= 1
            self.log.ended[step] = now()

    async def report(self, reason: NotRun) -> None:
        self.log.not_run[reason.step] = reason
        self.log.told[reason.step] = now()

    async def whole(self) -> Log:
        self.log.fates = await self.run.run()
        return self.log


def simulate(graph: Graph, **options: object) -> Log:
    return virtual_time.run(Simulation(graph, **options).whole())  # type: ignore[arg-type]


DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    size = draw(st.integers(1, 14))
    return {
        f"s{number}": [f"s{above}" for above in range(number) if draw(st.booleans())]
        if number < 6
        else [f"s{above}" for above in draw(st.lists(st.integers(0, number - 1), max_size=3))]
        for number in range(size)
    }


LIMITS = st.one_of(st.none(), st.integers(1, 5))
FATES = st.dictionaries(st.sampled_from([f"s{n}" for n in range(14)]), st.sampled_from([Fate.FAILED, Fate.STOPPED]))


def weights(graph: Graph) -> dict[str, int]:
    """The steps on the longest chain that starts at each step."""
    below: dict[str, list[str]] = {step: [] for step in graph}
    for step, above in graph.items():
        for name in above:
            below[name].append(step)
    return {step: _longest(step, below, {}) for step in graph}


def _longest(step: str, below: Mapping[str, list[str]], known: dict[str, int]) -> int:
    if step not in known:
        known[step] = 1 + max((_longest(name, below, known) for name in below[step]), default=0)
    return known[step]


@given(graphs(), LIMITS, st.data())
@settings(max_examples=200, deadline=None)
def test_a_list_schedule(graph: dict[str, list[str]], limit: int | None, data: st.DataObject) -> None:
    """Nothing starts early, nothing waits while a slot is free, and what weighs most goes first."""
    # A power of two apart: no two sums of them are equal, so no two steps end at the same time.
    seconds = {step: data.draw(st.integers(1, 4)) + 2.0**-number for number, step in enumerate(graph, start=1)}
    log = simulate(graph, limit=limit, seconds=seconds)
    assert log.fates == dict.fromkeys(graph, Fate.DONE)
    assert limit is None or log.most <= limit
    ready = {step: max((log.ended[name] for name in above), default=0.0) for step, above in graph.items()}
    weight = weights(graph)
    for step in graph:
        assert log.started[step] >= ready[step]
        if log.started[step] > ready[step]:
            # It waited: so all slots were taken all the while, by steps that started before it.
            assert limit is not None
            moments = [ready[step], *(end for end in log.ended.values() if ready[step] < end < log.started[step])]
            for moment in moments:
                busy = [name for name in graph if log.started[name] <= moment < log.ended[name]]
                assert len(busy) == limit
    for step, other in ((one, two) for one in graph for two in graph):
        if ready[other] <= log.started[step] < log.started[other] and weight[other] > weight[step]:
            # The same moment is fine: whatever is ready at the start goes in together, as far as there is room.
            pytest.fail(f"{other} weighs more than {step}, was ready, and came later")


@given(graphs(), LIMITS, FATES, st.sampled_from(FailureMode))
@settings(max_examples=200, deadline=None)
def test_every_step_gets_its_fate(
    graph: dict[str, list[str]], limit: int | None, fates: dict[str, Fate], mode: FailureMode
) -> None:
    log = simulate(graph, limit=limit, fates=fates, mode=mode)
    assert set(log.fates) == set(graph)
    assert set(log.not_run) == {step for step, fate in log.fates.items() if fate is Fate.NOT_RUN}
    assert set(log.not_run).isdisjoint(log.started)
    assert set(log.started) | set(log.not_run) == set(graph)
    for step, above in graph.items():
        if step in log.started:
            assert all(log.fates[name] is Fate.DONE for name in above)
        elif mode is CONTINUE:
            assert any(log.fates[name] is not Fate.DONE for name in above)
            assert log.not_run[step].upstream
        for culprit in log.not_run[step].upstream if step in log.not_run else ():
            assert log.fates[culprit] in (Fate.FAILED, Fate.STOPPED)
            assert culprit in log.not_run[step].reason
    if all(fate is not Fate.FAILED for fate in log.fates.values()) and mode is not CONTINUE:
        assert log.fates == simulate(graph, limit=limit, fates=fates, mode=CONTINUE).fates


@given(graphs(), st.data())
@settings(max_examples=100, deadline=None)
def test_resuming_runs_only_what_is_left(graph: dict[str, list[str]], data: st.DataObject) -> None:
    finished = data.draw(st.lists(st.sampled_from(sorted(graph)), unique=True))
    log = simulate(graph, finished=finished)
    assert log.fates == dict.fromkeys(graph, Fate.DONE)
    assert set(log.started) == set(graph) - set(finished)
    for step in log.started:
        assert all(log.ended[name] <= log.started[step] for name in graph[step] if name not in finished)


def test_what_runs_already_goes_first() -> None:
    """Otherwise a step with a longer chain would begin beside two that still run."""
    graph: Graph = {"long": [], "below": ["long"], "begun": [], "begun too": []}
    log = simulate(graph, limit=2, begun=["begun", "begun too"])
    assert (log.started["begun"], log.started["begun too"], log.started["long"]) == (0, 0, 1)


def test_a_diamond() -> None:
    log = simulate(DIAMOND)
    assert log.started == {"a": 0, "b": 1, "c": 1, "d": 2}


def test_no_waves() -> None:
    """A step waits for its own upstreams, not for all that started with them."""
    log = simulate({"slow": [], "quick": [], "after": ["quick"]}, seconds={"slow": 100})
    assert log.started["after"] == 1


def test_the_longest_chain_goes_first() -> None:
    graph = {"short1": [], "short2": [], "long1": [], "long2": ["long1"], "long3": ["long2"]}
    log = simulate(graph, limit=1)
    assert list(log.started) == ["long1", "long2", "short1", "short2", "long3"]


def test_an_upstream_step_named_twice_counts_once() -> None:
    assert simulate({"a": [], "b": ["a", "a"]}).fates == {"a": Fate.DONE, "b": Fate.DONE}


# Failure modes

FAILING = {"bad": [], "below": ["bad"], "far": ["below"], "running": [], "later": ["running"]}
ENDS = {"bad": 1.0, "running": 5.0}


@pytest.mark.parametrize(
    ("mode", "fates", "told"),
    [
        (CONTINUE, {"running": Fate.DONE, "later": Fate.DONE}, {"below": 1, "far": 1}),
        (STOP, {"running": Fate.DONE, "later": Fate.NOT_RUN}, {"below": 1, "far": 1, "later": 5}),
        (FAST, {"running": Fate.STOPPED, "later": Fate.NOT_RUN}, {"below": 1, "far": 1, "later": 1}),
    ],
)
def test_failure_modes(mode: FailureMode, fates: dict[str, Fate], told: dict[str, float]) -> None:
    log = simulate(FAILING, mode=mode, seconds=ENDS, fates={"bad": Fate.FAILED})
    assert log.fates == {"bad": Fate.FAILED, "below": Fate.NOT_RUN, "far": Fate.NOT_RUN, **fates}
    assert log.told == told
    for step in ("below", "far"):
        assert log.not_run[step] == NotRun(step, ("bad",), "upstream bad failed")
    assert log.ended["running"] == (1 if mode is FAST else 5)
    if mode is not CONTINUE:
        reason = log.not_run["later"].reason
        assert ("bad" in reason and mode.name in reason) or reason == "upstream running stopped"


def test_a_stopped_step_stops_only_what_is_below() -> None:
    log = simulate(FAILING, mode=FAST, seconds=ENDS, fates={"bad": Fate.STOPPED})
    assert log.fates["running"] is log.fates["later"] is Fate.DONE
    assert log.not_run["far"] == NotRun("far", ("bad",), "upstream bad stopped")


def test_all_failed_upstreams_are_named() -> None:
    graph = {"x": [], "y": [], "fine": [], "join": ["x", "y", "fine"], "end": ["join"]}
    log = simulate(graph, fates={"x": Fate.FAILED, "y": Fate.FAILED})
    assert log.not_run["join"].upstream == ("x", "y") or log.not_run["join"].upstream == ("x",)
    assert log.not_run["end"].upstream == log.not_run["join"].upstream


# Steps that have ended but aren't known to


class Unknown(Simulation):
    """What came of a step is known only ``reading`` seconds after its end."""

    def __init__(self, graph: Graph, reading: float, **options: object) -> None:
        super().__init__(graph, **options)  # type: ignore[arg-type]
        self.reading = reading

    async def execute(self, step: str, permit: Pass) -> Fate:
        fate = await super().execute(step, permit)
        permit.ends()
        await asyncio.sleep(self.reading)
        return fate


def with_reading(graph: Graph, reading: float, **options: object) -> Log:
    return virtual_time.run(Unknown(graph, reading, **options).whole())


def test_a_place_is_free_before_it_is_known_what_came_of_its_step() -> None:
    log = with_reading({"a": [], "b": [], "c": []}, 0.5, limit=1)
    assert log.started == {"a": 0, "b": 1, "c": 2}
    assert log.most == 1


def test_a_place_is_kept_for_the_next_on_the_longer_way() -> None:
    graph = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "other": []}
    log = with_reading(graph, 0.5, limit=1, seconds={"other": 100})
    assert log.started == {"a": 0, "b": 1.5, "c": 3, "other": 4, "d": 104}


def test_a_place_is_kept_for_nobody_who_waits_for_others_too() -> None:
    graph = {"a": [], "long": [], "b": ["a", "long"], "c": ["b"], "other": []}
    log = with_reading(graph, 0.5, limit=2, seconds={"long": 9})
    assert log.started["other"] == 1


def test_who_comes_later_has_the_place_at_once() -> None:
    graph = {"a": [], "first": [], "second": ["first"]}
    log = with_reading(graph, 5, limit=2, seconds={"a": 5.5, "first": 1})
    assert log.started["second"] == 6


def test_a_step_that_has_ended_is_no_step_that_waits() -> None:
    """Draining gives up those that wait for a retry, and none whose end is being read."""
    graph = {"good": [], "bad": [], "other": []}
    log = with_reading(
        graph, 5, limit=2, mode=STOP, seconds={"good": 0.5, "bad": 1, "other": 9}, fates={"bad": Fate.FAILED}
    )
    assert log.fates == {"good": Fate.DONE, "bad": Fate.FAILED, "other": Fate.DONE}


@settings(max_examples=150, deadline=None)
@given(graphs(), LIMITS, st.sampled_from([CONTINUE, STOP, FAST]), FATES)
def test_reading_never_makes_it_too_many_and_loses_nobody(
    graph: Graph, limit: int | None, mode: FailureMode, fates: Mapping[str, Fate]
) -> None:
    log = with_reading(graph, 0.25, limit=limit, mode=mode, fates=fates)
    assert set(log.fates) == set(graph)
    assert limit is None or log.most <= limit
    for step, above in graph.items():
        if step in log.started:
            assert all(log.ended[name] + 0.25 <= log.started[step] for name in above)


# Retries


class Retrying(Simulation):
    """Each step in ``delays`` fails once, waits, and then takes a second."""

    def __init__(self, graph: Graph, delays: Mapping[str, float], **options: object) -> None:
        super().__init__(graph, **options)  # type: ignore[arg-type]
        self.delays = delays
        self.again: dict[str, float] = {}
        self.gave_up: dict[str, float] = {}

    async def execute(self, step: str, permit: Pass) -> Fate:
        if step not in self.delays:
            return await super().execute(step, permit)
        self.log.started[step] = now()
        await asyncio.wait({asyncio.ensure_future(permit.kill.wait())}, timeout=self.seconds.get(step, 1.0))
        if permit.kill.is_set() or permit.last_attempt:
            self.gave_up[step] = now()
            return Fate.FAILED
        permit.give_back()
        assert not permit.held
        await asyncio.wait({asyncio.ensure_future(permit.kill.wait())}, timeout=self.delays[step])
        if not await permit.take_again():
            assert not permit.held
            self.gave_up[step] = now()
            return Fate.FAILED
        assert permit.held
        self.again[step] = now()
        await asyncio.sleep(1)
        return Fate.DONE


def retry(graph: Graph, delays: Mapping[str, float], **options: object) -> Retrying:
    simulation = Retrying(graph, delays, **options)
    virtual_time.run(simulation.whole())
    return simulation


def test_a_step_that_waits_for_its_retry_holds_no_slot() -> None:
    simulation = retry({"flaky": [], "below": ["flaky"], "other": []}, {"flaky": 10}, limit=1)
    assert simulation.log.started["other"] == 1
    assert simulation.again["flaky"] == 11
    assert simulation.log.started["below"] == 12


def test_a_retry_stands_in_line_again() -> None:
    simulation = retry({"flaky": [], "long": []}, {"flaky": 1}, limit=1, seconds={"long": 50})
    assert simulation.log.started["long"] == 1
    assert simulation.again["flaky"] == 51


@pytest.mark.parametrize(("mode", "gave_up"), [(FAST, 2), (STOP, 2)])
def test_a_step_gives_its_retry_up_when_nothing_may_start(mode: FailureMode, gave_up: float) -> None:
    simulation = retry(
        {"flaky": [], "bad": []}, {"flaky": 100}, mode=mode, seconds={"bad": 2}, fates={"bad": Fate.FAILED}
    )
    assert simulation.gave_up == {"flaky": gave_up}


def test_a_step_in_line_for_its_retry_gives_it_up_too() -> None:
    graph = {"flaky": [], "bad": []}
    simulation = retry(graph, {"flaky": 1}, mode=STOP, limit=1, seconds={"bad": 20}, fates={"bad": Fate.FAILED})
    assert simulation.gave_up == {"flaky": 21}


def test_no_retry_of_a_step_that_fails_after_the_stop() -> None:
    simulation = retry(
        {"flaky": [], "bad": []}, {"flaky": 1}, mode=STOP, seconds={"flaky": 9}, fates={"bad": Fate.FAILED}
    )
    assert simulation.gave_up == {"flaky": 9}


def test_a_retry_cancelled_in_line_leaves_its_slot_to_others() -> None:
    """Somebody cancels the task that waits in ``take_again``."""
    waits: list[asyncio.Task[bool]] = []

    class Cancelled(Simulation):
        async def execute(self, step: str, permit: Pass) -> Fate:
            if step != "flaky":
                return await super().execute(step, permit)
            permit.give_back()
            await asyncio.sleep(0.1)
            waits.append(asyncio.ensure_future(permit.take_again()))
            await asyncio.sleep(0.1)
            waits[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits[0]
            return Fate.FAILED

    # `flaky` weighs most, so it is before `second` in the line that it left.
    graph = {"flaky": [], "below": ["flaky"], "far": ["below"], "first": [], "second": ["first"]}
    simulation = Cancelled(graph, limit=1)
    log = virtual_time.run(simulation.whole())
    assert log.fates["second"] is Fate.DONE
    assert log.started == {"first": 0, "second": 1}


# Cancelling, killing, defects


def test_a_cancelled_run_kills_reports_and_then_raises() -> None:
    async def main() -> Log:
        simulation = Simulation({"a": [], "b": ["a"], "c": []}, seconds={"a": 100, "c": 100}, limit=1)
        run = asyncio.ensure_future(simulation.whole())
        await asyncio.sleep(3)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert now() == 3
        return simulation.log

    log = virtual_time.run(main())
    assert log.ended == {"a": 3}
    assert log.not_run["b"] == NotRun("b", ("a",), "upstream a stopped")
    assert log.not_run["c"] == NotRun("c", (), "the run was cancelled")


def test_cancelling_twice_loses_nothing() -> None:
    async def main() -> dict[str, NotRun]:
        reported: dict[str, NotRun] = {}

        async def slow_to_die(step: str, permit: Pass) -> Fate:
            await permit.kill.wait()
            await asyncio.sleep(5)
            return Fate.STOPPED

        async def slow_report(reason: NotRun) -> None:
            await asyncio.sleep(5)
            reported[reason.step] = reason

        graph = GraphRun(
            {"a": [], "b": ["a"]}, execute=slow_to_die, not_run=slow_report, admission=Slots(1), failure_mode=CONTINUE
        )
        run = asyncio.ensure_future(graph.run())
        for wait in (1, 1, 5):  # while it runs, while it dies, while the rest is reported
            await asyncio.sleep(wait)
            run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        return reported

    assert set(virtual_time.run(main())) == {"b"}


def test_killing_ends_everything() -> None:
    async def main() -> Log:
        simulation = Simulation(DIAMOND, seconds={"a": 100})
        run = asyncio.ensure_future(simulation.whole())
        await asyncio.sleep(2)
        simulation.run.kill("the watchdog says so")
        return await run

    log = virtual_time.run(main())
    assert log.ended == {"a": 2}
    assert log.fates == {"a": Fate.STOPPED, **dict.fromkeys("bcd", Fate.NOT_RUN)}


def test_draining_lets_what_runs_end() -> None:
    async def main() -> Log:
        simulation = Simulation(DIAMOND, seconds={"b": 10}, limit=1)
        run = asyncio.ensure_future(simulation.whole())
        await asyncio.sleep(2)
        simulation.run.drain("SIGTERM")
        simulation.run.drain("another reason, too late")
        return await run

    log = virtual_time.run(main())
    assert log.fates == {"a": Fate.DONE, "b": Fate.DONE, "c": Fate.NOT_RUN, "d": Fate.NOT_RUN}
    assert {reason.reason for reason in log.not_run.values()} == {"SIGTERM"}


@pytest.mark.parametrize(("mode", "times"), [(FAST, 1), (STOP, 1), (CONTINUE, 0)])
def test_that_nothing_may_start_any_more_is_told_once(mode: FailureMode, times: int) -> None:
    """Also where what runs is killed, after that, by somebody else."""
    told: list[None] = []

    async def fails(step: str, permit: Pass) -> Fate:
        return Fate.FAILED

    async def not_run(missing: NotRun) -> None:
        return None

    async def main() -> None:
        graph = {"bad": [], "below": ["bad"]}
        options = {"execute": fails, "not_run": not_run, "admission": Slots(None), "failure_mode": mode}
        run = GraphRun(graph, **options, closed=lambda: told.append(None))  # type: ignore[arg-type]
        await run.run()
        assert len(told) == times
        run.kill("Ctrl-C")

    virtual_time.run(main())
    assert len(told) == 1


@pytest.mark.parametrize("when", [0, 2])
def test_what_an_earlier_process_began_is_ended_too(when: float) -> None:
    """Stopped before the run began, and while one of them waits for its place: it runs all the same."""

    async def main() -> Log:
        graph = {"first": [], "second": [], "below": ["second"], "other": []}
        begun, seconds = ["first", "second"], {"first": 100, "second": 100}
        simulation = Simulation(graph, begun=begun, seconds=seconds, limit=1)
        run = asyncio.ensure_future(simulation.whole())
        if when:
            await asyncio.sleep(when)
        simulation.run.kill("Ctrl-C")
        return await run

    log = virtual_time.run(main())
    assert log.ended == {"first": when, "second": when}
    assert log.fates == {**dict.fromkeys(["first", "second"], Fate.STOPPED), **dict.fromkeys(log.not_run, Fate.NOT_RUN)}
    assert set(log.not_run) == {"below", "other"}
    assert log.most == 1


@pytest.mark.parametrize("when", [0, 0.5])
def test_what_an_earlier_process_began_comes_to_its_end_after_the_stop(when: float) -> None:
    """Unless it waits for its retry: then nothing follows the attempt that was."""

    async def main() -> Retrying:
        begun = ["flaky", "long"]
        simulation = Retrying({"flaky": [], "long": [], "other": []}, {"flaky": 50}, begun=begun, limit=1)
        run = asyncio.ensure_future(simulation.whole())
        if when:
            await asyncio.sleep(when)
        simulation.run.drain("ZenML says so")
        await run
        return simulation

    simulation = virtual_time.run(main())
    assert simulation.gave_up == {"flaky": 1}
    assert simulation.log.ended == {"long": 2}
    assert simulation.log.fates == {"flaky": Fate.FAILED, "long": Fate.DONE, "other": Fate.NOT_RUN}


@pytest.mark.parametrize("how", ["raises", "is cancelled"])
def test_a_defect_ends_the_run_and_is_raised(how: str) -> None:
    class Broken(Simulation):
        async def execute(self, step: str, permit: Pass) -> Fate:
            if step != "broken":
                return await super().execute(step, permit)
            await asyncio.sleep(1)
            raise LookupError("a bug") if how == "raises" else asyncio.CancelledError

    simulation = Broken({"broken": [], "below": ["broken"], "other": []}, seconds={"other": 100})

    async def main() -> None:
        with pytest.raises(LookupError if how == "raises" else asyncio.CancelledError):
            await simulation.whole()

    virtual_time.run(main())
    assert simulation.log.ended == {"other": 1}
    assert set(simulation.log.not_run) == {"below"}


def test_a_report_that_fails_is_raised_after_all_others() -> None:
    class Mute(Simulation):
        async def report(self, reason: NotRun) -> None:
            if reason.step == "one":
                raise ConnectionError("Prefect is away")
            await asyncio.sleep(3)
            await super().report(reason)

    simulation = Mute({"bad": [], "one": ["bad"], "two": ["bad"]}, fates={"bad": Fate.FAILED})

    async def main() -> None:
        with pytest.raises(ConnectionError):
            await simulation.whole()

    virtual_time.run(main())
    assert set(simulation.log.not_run) == {"two"}


# Admission by what steps ask for


class Cores:
    """Admission by cores, as in `pipeline` mode."""

    def __init__(self, cores: int, needs: Mapping[str, int]) -> None:
        self.free = cores
        self.needs = needs

    def fits(self, step: str) -> bool:
        return self.needs[step] <= self.free

    def take(self, step: str) -> None:
        self.free -= self.needs[step]
        assert self.free >= 0

    def give(self, step: str) -> None:
        self.free += self.needs[step]


def test_a_small_step_passes_a_large_one() -> None:
    cores = Cores(4, {"running": 3, "large": 4, "below": 4, "small": 1})
    graph = {"running": [], "large": [], "below": ["large"], "small": []}
    log = simulate(graph, admission=cores, seconds={"running": 5})
    # `large` weighs most and is first in line, so it starts first; `running` and `small` fit together after it.
    assert log.started == {"large": 0, "running": 1, "small": 1, "below": 6}
    assert cores.free == 4


@given(graphs(), st.data())
@settings(max_examples=100, deadline=None)
def test_never_more_than_there_is(graph: dict[str, list[str]], data: st.DataObject) -> None:
    needs = {step: data.draw(st.integers(1, 4)) for step in graph}
    cores = Cores(4, needs)
    log = simulate(graph, admission=cores)  # `take` asserts that it fits
    assert log.fates == dict.fromkeys(graph, Fate.DONE)
    assert cores.free == 4


# Contexts, sizes, bad graphs


def test_a_step_sees_the_context_of_the_run_not_of_the_step_that_let_it_in() -> None:
    import contextvars

    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    seen: dict[str, str] = {}

    class Marked(Simulation):
        async def execute(self, step: str, permit: Pass) -> Fate:
            seen[step] = who.get()
            who.set(step)
            permit.give_back()  # lets the next one in from within this step
            return Fate.DONE

    virtual_time.run(Marked({"a": [], "b": [], "c": ["a"]}, limit=1).whole())
    assert seen == {"a": "nobody", "b": "nobody", "c": "nobody"}


def chain(length: int) -> dict[str, list[str]]:
    return {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(length)}


def seconds_of(graph: Graph, **options: object) -> float:
    """Neither other programs nor what earlier tests left for the collector of garbage to walk through add to them."""
    gc.collect()
    gc.disable()
    try:
        begin = time.process_time()
        simulate(graph, **options)
        return time.process_time() - begin
    finally:
        gc.enable()


@pytest.mark.parametrize("fates", [{}, {"s0": Fate.FAILED}], ids=["done", "failed at the first"])
def test_long_chains_take_linear_time(fates: dict[str, Fate]) -> None:
    small = max(seconds_of(chain(500), fates=fates) for _ in range(3))
    large = min(seconds_of(chain(5_000), fates=fates) for _ in range(2))
    assert large < 40 * small


def test_a_wide_graph_with_few_slots_takes_linear_time() -> None:
    wide = {size: {f"s{n}": [] for n in range(size)} for size in (500, 5_000)}
    small = max(seconds_of(wide[500], limit=16) for _ in range(3))
    assert seconds_of(wide[5_000], limit=16) < 40 * small


@pytest.mark.parametrize("graph", [{"a": ["a"]}, {"a": ["b"], "b": ["a"]}, {"x": [], "a": ["x", "b"], "b": ["a"]}])
def test_a_cycle_is_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match="cycle"):
        Simulation(graph)


def test_an_empty_graph_is_done() -> None:
    assert simulate({}).fates == {}
