"""Sandboxes that cost much are called for just before they are needed, and not where nothing says when that is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from bridge.warming.foresight import Foresight
from tests.unit import virtual_time

TRAIN = {"train": ["load", "clean"]}


class Calls:
    """What was called for, and when, in virtual seconds."""

    def __init__(self, upstream: Mapping[str, Collection[str]], durations: Mapping[str, float]) -> None:
        self.made: list[tuple[str, float]] = []
        self.foresight = Foresight(upstream, 30, lambda step: self.made.append((step, now())))
        self.foresight.learn(durations)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_the_slowest_upstream_says_when() -> None:
    async def scenario() -> None:
        calls = Calls(TRAIN, {"load": 100, "clean": 200})
        calls.foresight.begin("load")
        await asyncio.sleep(5)  # it isn't known yet when `clean` begins
        calls.foresight.begin("clean")
        await asyncio.sleep(94)
        calls.foresight.end("load")
        await asyncio.sleep(500)
        assert calls.made == [("train", 5 + 200 - 30)]

    virtual_time.run(scenario())


def test_what_is_needed_sooner_is_called_for_at_once() -> None:
    async def scenario() -> None:
        calls = Calls(TRAIN, {"load": 1, "clean": 2})
        calls.foresight.begin("load")
        calls.foresight.begin("clean")
        await asyncio.sleep(0.1)
        assert calls.made == [("train", 0)]

    virtual_time.run(scenario())


def test_durations_that_are_learned_late_count() -> None:
    async def scenario() -> None:
        calls = Calls(TRAIN, {})
        calls.foresight.begin("load")
        calls.foresight.begin("clean")
        await asyncio.sleep(50)
        assert calls.made == []
        calls.foresight.learn({"load": 60, "clean": 100})
        await asyncio.sleep(100)
        assert calls.made == [("train", 70)]

    virtual_time.run(scenario())


def test_nothing_is_called_for_without_a_duration_or_once_the_step_has_begun() -> None:
    async def scenario() -> None:
        calls = Calls({"train": ["load"], "other": ["new"]}, {"load": 100})
        calls.foresight.begin("load")
        calls.foresight.begin("new")
        await asyncio.sleep(60)
        calls.foresight.begin("train")
        await asyncio.sleep(500)
        assert calls.made == []

    virtual_time.run(scenario())


def test_it_is_called_for_again_only_after_an_upstream_began_again() -> None:
    async def scenario() -> None:
        calls = Calls({"train": ["load"]}, {"load": 40})
        calls.foresight.begin("load")
        await asyncio.sleep(60)
        calls.foresight.learn({"load": 40})
        await asyncio.sleep(60)
        assert calls.made == [("train", 10)]
        calls.foresight.begin("load")
        await asyncio.sleep(60)
        assert calls.made == [("train", 10), ("train", 130)]
        calls.foresight.begin("load")
        calls.foresight.close()
        await asyncio.sleep(60)
        assert len(calls.made) == 2

    virtual_time.run(scenario())
