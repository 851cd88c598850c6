"""Who goes into which sandbox: the pool alone, with numbers for sandboxes."""

from __future__ import annotations

import random
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.pool import Pool


def anything(_: int) -> bool:
    return True


def chain(length: int, kind: str = "cpu") -> Pool[str, int]:
    names = [f"s{number}" for number in range(length)]
    return Pool(dict.fromkeys(names, kind), {name: names[at - 1 : at] if at else [] for at, name in enumerate(names)})


def diamond(**options) -> Pool[str, int]:  # type: ignore[no-untyped-def]
    upstream = {"one": [], "left": ["one"], "right": ["one"], "bottom": ["left", "right"]}
    return Pool(dict.fromkeys(upstream, "cpu"), upstream, **{"early": list(upstream), **options})


def test_more_steps_inside_than_the_limit_lets_in() -> None:
    """As a flow finds them that comes back: nothing is idle, so somebody has to leave."""
    pool = diamond(limit=1)
    for step in ("left", "right"):
        pool.enter(step, anything)
    assert not pool.has_room
    assert pool.in_the_way() is None
    pool.leave("left", None)
    assert pool.has_room


def test_a_chain_takes_one_sandbox() -> None:
    pool = chain(5)
    assert pool.enter("s0", anything) is None
    pool.leave("s0", 1)
    pool.finish("s0")
    assert pool.superfluous() == []
    for number in range(1, 5):
        assert pool.enter(f"s{number}", anything) == 1
        pool.leave(f"s{number}", 1)
        pool.finish(f"s{number}")
    assert pool.superfluous() == [1]


def test_a_sandbox_is_kept_while_its_step_may_be_tried_again() -> None:
    pool = chain(1)
    pool.enter("s0", anything)
    pool.leave("s0", 1)
    assert pool.superfluous() == []
    assert pool.enter("s0", anything) == 1


def test_a_sandbox_that_does_not_fit_stays_where_it_is() -> None:
    pool = chain(3)
    pool.enter("s0", anything)
    pool.leave("s0", 1)
    assert pool.enter("s1", lambda host: host != 1) is None
    assert pool.idle == [1]


def test_kinds_do_not_mix() -> None:
    pool: Pool[str, int] = Pool({"cpu": "cpu", "gpu": "gpu"}, {"cpu": [], "gpu": []})
    pool.enter("cpu", anything)
    pool.leave("cpu", 1)
    assert pool.enter("gpu", anything) is None


def test_an_idle_sandbox_of_another_kind_makes_room() -> None:
    pool: Pool[str, int] = Pool({"cpu": "cpu", "later": "cpu", "gpu": "gpu"}, {"cpu": [], "later": [], "gpu": []}, 1)
    pool.enter("cpu", anything)
    pool.leave("cpu", 1)
    assert pool.in_the_way() is None
    pool.enter("gpu", anything)
    assert pool.in_the_way() == 1
    assert pool.in_the_way() is None
    assert pool.idle == []


def test_a_sandbox_that_is_being_ended_counts() -> None:
    upstream = {"cpu": [], "gpu": ["cpu"], "more": ["cpu"]}
    pool: Pool[str, int] = Pool({"cpu": "cpu", "gpu": "gpu", "more": "gpu"}, upstream, 1, ["gpu", "more"])
    pool.enter("cpu", anything)
    pool.leave("cpu", 1)
    pool.finish("cpu")
    assert pool.superfluous() == [1]
    pool.begin_end()
    pool.enter("gpu", anything)
    assert not pool.has_room
    assert pool.in_the_way() is None
    assert pool.wanted() == []
    pool.ended()
    assert pool.has_room


def test_the_last_that_was_left_is_taken_first() -> None:
    pool: Pool[str, int] = Pool(dict.fromkeys("abc", "cpu"), dict.fromkeys("abc", ()))
    for name, host in (("a", 1), ("b", 2)):
        pool.enter(name, anything)
    for name, host in (("a", 1), ("b", 2)):
        pool.leave(name, host)
    assert pool.enter("c", anything) == 2


def test_steps_that_never_run_need_no_sandbox() -> None:
    pool = chain(3)
    pool.enter("s0", anything)
    pool.leave("s0", 1)
    for number in range(3):
        pool.finish(f"s{number}")
        pool.finish(f"s{number}")
    assert pool.superfluous() == [1]


def test_the_second_branch_of_a_diamond_is_started_while_its_upstream_runs() -> None:
    pool = diamond()
    pool.enter("one", anything)
    assert pool.wanted() == ["cpu"], "one for a branch; the other takes what `one` leaves"
    pool.add("cpu", 2)
    assert pool.wanted() == []


@pytest.mark.parametrize(
    ("options", "why"), [({"limit": 1}, "no room for it"), ({"early": ()}, "it may be cached, or costs too much")]
)
def test_nothing_is_started_early_where(options, why: str) -> None:  # type: ignore[no-untyped-def]
    pool = diamond(**options)
    pool.enter("one", anything)
    assert pool.wanted() == [], why


def test_what_waits_for_more_than_the_running_steps_is_not_started_early() -> None:
    upstream = {"one": [], "slow": [], "both": ["one", "slow"], "alone": ["one"], "more": ["one"]}
    kinds = {**dict.fromkeys(upstream, "cpu"), "both": "big"}
    pool: Pool[str, int] = Pool(kinds, upstream, early=list(upstream))
    pool.enter("one", anything)
    assert pool.wanted() == ["cpu"]
    pool.enter("slow", anything)
    assert pool.wanted() == ["big"]


def test_what_waits_for_a_step_that_failed_is_not_started_early() -> None:
    """It never runs: nor does a sandbox that nobody would enter, until that is told of each."""
    upstream = {"bad": [], "good": [], **{f"below_{number}": ["bad", "good"] for number in range(3)}}
    pool: Pool[str, int] = Pool(dict.fromkeys(upstream, "cpu"), upstream, 2, list(upstream))
    for step in ("bad", "good"):
        pool.enter(step, anything)
    pool.leave("bad", None)
    pool.finish("bad", done=False)
    assert pool.has_room
    assert pool.wanted() == []


def fan_beside_a_chain(limit: int | None = None) -> tuple[Pool[str, int], list[str]]:
    """``long`` above three steps, beside a chain of short ones; and that chain."""
    links = [f"c{number}" for number in range(5)]
    fan = {f"wide_{number}": ["long"] for number in range(3)}
    upstream = {"long": [], **fan, **{link: links[at - 1 : at] if at else [] for at, link in enumerate(links)}}
    return Pool(dict.fromkeys(upstream, "cpu"), upstream, limit, list(upstream)), links


@pytest.mark.parametrize(("limit", "at_most"), [(None, 2), (3, 1)])
def test_what_idled_out_is_not_started_early_again(limit: int | None, at_most: int) -> None:
    """A long step above a fan: whatever begins and ends beside it, its fan has waited in vain once."""
    pool, links = fan_beside_a_chain(limit)
    pool.enter("long", anything)
    pool.enter(links[0], anything)
    early = list(enumerate(pool.wanted(), start=100))
    assert len(early) == at_most, "of three, one takes what `long` leaves"
    for host, kind in early:
        pool.add(kind, host)
    assert pool.wanted() == []
    for host, _ in early:
        assert pool.idled_out(host)
        assert not pool.idled_out(host)
    for link, following in pairwise(links):
        assert pool.wanted() == []
        pool.leave(link, 1)
        pool.finish(link)
        assert pool.wanted() == []
        assert pool.enter(following, anything) == 1
    pool.leave("long", 2)
    pool.enter("long", anything)
    assert len(pool.wanted()) == 1, "it is tried again, and may succeed soon; the chain leaves one too"


def test_what_idled_out_between_two_steps_is_not_started_early_again() -> None:
    """What the chain's sandbox is to one of the fan in that moment it isn't in the next."""
    pool, links = fan_beside_a_chain()
    pool.enter("long", anything)
    pool.enter(links[0], anything)
    for host in (100, 101):
        pool.add("cpu", host)
    pool.leave(links[0], 1)
    pool.finish(links[0])
    assert pool.idled_out(100)
    assert pool.enter(links[1], anything) == 1
    assert pool.wanted() == []


def test_what_idled_out_says_nothing_of_other_steps() -> None:
    upstream = {"long": [], "below": ["long"], "one": [], "left": ["one"], "right": ["one"]}
    kinds = {**dict.fromkeys(upstream, "cpu"), "long": "big", "one": "big"}
    pool: Pool[str, int] = Pool(kinds, upstream, early=list(upstream))
    pool.enter("long", anything)
    assert pool.wanted() == ["cpu"]
    pool.add("cpu", 1)
    assert pool.idled_out(1)
    pool.enter("one", anything)
    assert pool.wanted() == ["cpu", "cpu"]


def test_where_nothing_begins_any_more_no_sandbox_is_started_or_kept() -> None:
    pool = diamond()
    pool.enter("one", anything)
    pool.add("cpu", 1)
    assert pool.superfluous() == []
    pool.close()
    assert pool.superfluous() == [1]
    assert pool.wanted() == []
    pool.leave("one", 2)
    pool.finish("one")
    assert pool.superfluous() == [2]


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 25))
def test_a_run_never_has_more_sandboxes_than_it_may_and_leaves_none(seed: int, limit: int, steps: int) -> None:
    """Any graph, any kinds, any order, some steps failing for good: the bookkeeping of a whole run."""
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(steps)]
    upstream = {name: chance.sample(names[:at], min(at, chance.randint(0, 2))) for at, name in enumerate(names)}
    pool: Pool[str, int] = Pool(
        {name: chance.choice(["cpu", "gpu"]) for name in names}, upstream, limit, chance.sample(names, steps // 2)
    )
    hosts = count()
    alive: set[int] = set()
    ending: set[int] = set()
    inside: dict[str, int] = {}

    def end(host: int) -> None:
        ending.add(host)
        pool.begin_end()

    def gone() -> None:
        alive.remove(ending.pop())
        pool.ended()

    done: set[str] = set()
    while len(done) < steps:
        ready = [name for name in names if name not in done | set(inside) and set(upstream[name]) <= done]
        if ready and len(inside) < limit and chance.random() < 0.6:
            name = chance.choice(ready)
            host = pool.enter(name, anything)
            if host is None:
                while not pool.has_room:
                    other = pool.in_the_way()
                    if other is None:
                        gone()
                    else:
                        end(other)
                host = next(hosts)
                alive.add(host)
            inside[name] = host
            for kind in pool.wanted():
                early = next(hosts)
                alive.add(early)
                pool.add(kind, early)
        elif inside:
            name = chance.choice(list(inside))
            host = inside.pop(name)
            fit = chance.random() < 0.8
            pool.leave(name, host if fit else None)
            if not fit:
                end(host)
            if chance.random() < 0.8:
                done.add(name)
                pool.finish(name)
                for other in pool.superfluous():
                    end(other)
        if pool.idle and chance.random() < 0.1:
            idle = chance.choice(pool.idle)
            assert pool.idled_out(idle)
            end(idle)
        if ending and chance.random() < 0.5:
            gone()
        assert len(alive) <= limit
        assert set(pool.idle) | set(inside.values()) | ending == alive
    assert alive == ending
