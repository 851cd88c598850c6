"""What the scripted runner offers beyond the contract: counts, outages, evictions, a clock, and a small size."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest

from bridge.errors import CapacityUnavailable, RunnerUnavailable
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.plan import SandboxSpec
from bridge.runners.base import SandboxRequest
from bridge.runners.contract import Lab, texts
from bridge.runners.scripted import OUTPUT_CHARACTERS, ManualClock, ScriptedRunner, ScriptedSandbox, Stage

DONE = SandboxEnd(End.EXITED, 0)


def request(name: str = "one", timeout: int = 3600) -> SandboxRequest:
    return SandboxRequest(name, "app", ("whatever",), SandboxSpec(timeout=timeout), tags={"app": "app"})


async def sleeps(_: SandboxRequest, stage: Stage) -> SandboxEnd:
    stage.write("up\n")
    await stage.sleep(10)
    return DONE


async def test_counts_in_its_own_time() -> None:
    clock = ManualClock()
    async with ScriptedRunner(sleeps, clock=clock) as runner:
        first = await runner.start(request("first"))
        await clock.advance(4)
        await runner.start(request("second"))
        assert (runner.created, len(runner.running_now), runner.most_running) == (2, 2, 2)
        await clock.advance(6)
        assert await first.poll() == DONE
        assert [sandbox.name for sandbox in runner.running_now] == ["second"]
        assert runner.sandbox_seconds == 16
        await clock.advance(100)
        assert runner.running_now == ()
        assert (runner.created, runner.most_running, runner.sandbox_seconds) == (2, 2, 20)


async def test_a_timeout_is_in_its_own_time() -> None:
    clock = ManualClock()
    async with ScriptedRunner(sleeps, clock=clock) as runner:
        sandbox = await runner.start(request(timeout=9))
        await clock.advance(8)
        assert await sandbox.poll() is None
        await clock.advance(1)
        assert await sandbox.poll() == SandboxEnd(End.TIMED_OUT, detail="after 9 s")
        assert runner.sandbox_seconds == 9


async def test_an_outage_hides_sandboxes_and_leaves_them_alone() -> None:
    clock = ManualClock()
    async with ScriptedRunner(sleeps, clock=clock) as runner:
        sandbox = await runner.start(request())
        waiting = asyncio.ensure_future(sandbox.wait())
        with runner.outage():
            for question in (sandbox.poll(), sandbox.wait(), sandbox.terminate(), runner.find("app", "one")):
                with pytest.raises(RunnerUnavailable):
                    await question
            for question in (runner.running({}), runner.start(request("two"))):
                with pytest.raises(RunnerUnavailable):
                    await question
            await clock.advance(10)
            with pytest.raises(RunnerUnavailable):
                await waiting
        assert await sandbox.wait() == DONE
        assert runner.created == 1


@pytest.mark.parametrize("end", [SandboxEnd(End.EVICTED), SandboxEnd(End.LOST), SandboxEnd(End.OUT_OF_MEMORY)])
async def test_any_end_can_come_from_outside(end: SandboxEnd) -> None:
    async with ScriptedRunner(sleeps, clock=ManualClock()) as runner:
        sandbox = await runner.start(request())
        sandbox.end_with(end)
        assert await sandbox.wait() == end
        sandbox.end_with(DONE)
        assert await sandbox.poll() == end


async def test_the_end_waits_for_a_behaviour_that_cleans_up(lab: Lab) -> None:
    async def tidy(_: SandboxRequest, stage: Stage) -> SandboxEnd:
        try:
            await stage.sleep(1000)
        finally:
            assert stage.terminated.is_set()
            await asyncio.sleep(0)
            stage.write("cleaned up\n")
        return DONE

    async with ScriptedRunner(tidy) as runner:
        sandbox = await runner.start(request())
        await asyncio.sleep(0)
        await lab.within(sandbox.terminate())
        assert await sandbox.wait() == SandboxEnd(End.TERMINATED)
        assert texts(await lab.output(sandbox)) == ["cleaned up"]


async def test_a_behaviour_that_raises_is_a_program_that_raises(lab: Lab) -> None:
    async def broken(_: SandboxRequest, stage: Stage) -> SandboxEnd:
        raise ValueError("no such luck")

    async with ScriptedRunner(broken) as runner:
        sandbox = await runner.start(request())
        assert await lab.within(sandbox.wait()) == SandboxEnd(End.EXITED, 1)
        assert texts(await lab.output(sandbox), "stderr")[-1] == "ValueError: no such luck"


async def test_admission_may_refuse() -> None:
    async def full(_: SandboxRequest) -> None:
        raise CapacityUnavailable("no A100 in 300 s")

    async with ScriptedRunner(sleeps, admit=full) as runner:
        with pytest.raises(CapacityUnavailable, match="no A100"):
            await runner.start(request())
        assert runner.created == 0


async def test_a_start_cancelled_while_it_waits_for_admission_leaves_nothing() -> None:
    admitted = asyncio.Event()

    async def slow(_: SandboxRequest) -> None:
        await admitted.wait()

    async with ScriptedRunner(sleeps, admit=slow) as runner:
        start = asyncio.ensure_future(runner.start(request()))
        await asyncio.sleep(0)
        start.cancel()
        admitted.set()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert runner.running_now == ()


async def test_a_start_that_another_still_waits_for_is_not_undone(lab: Lab) -> None:
    admitted = asyncio.Event()

    async def slow(_: SandboxRequest) -> None:
        await admitted.wait()

    async with ScriptedRunner(sleeps, admit=slow) as runner:
        impatient, patient = (asyncio.ensure_future(runner.start(request())) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await lab.within(asyncio.wait([impatient]))  # it has nothing to wait for
        admitted.set()
        sandbox = await patient
        assert runner.running_now == (sandbox,)
        assert runner.created == 1
        await sandbox.terminate()


async def test_a_start_that_is_wanted_again_is_not_undone() -> None:
    admitted = asyncio.Event()

    async def slow(_: SandboxRequest) -> None:
        await admitted.wait()

    async with ScriptedRunner(sleeps, admit=slow) as runner:
        cancelled = asyncio.ensure_future(runner.start(request()))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        again = asyncio.ensure_future(runner.start(request()))
        await asyncio.sleep(0)
        admitted.set()
        sandbox = await again
        await asyncio.wait([cancelled])
        assert runner.running_now == (sandbox,)
        await sandbox.terminate()


async def test_output_is_bounded(lab: Lab) -> None:
    chunk = "x" * 1023 + "\n"

    async def talks(_: SandboxRequest, stage: Stage) -> SandboxEnd:
        for _ in range(2 * OUTPUT_CHARACTERS // len(chunk)):
            stage.write(chunk)
        stage.write("last\n")
        return DONE

    async with ScriptedRunner(talks) as runner:
        sandbox = await runner.start(request())
        await lab.within(sandbox.wait())
        output = await lab.output(sandbox)
        assert output[0].text == "[16385 writes of output are left out here]"
        assert output[-1].text == "last"
        assert len(output) == 1 + OUTPUT_CHARACTERS // len(chunk)


async def test_a_thousand_at_once_cost_little() -> None:
    """A thousand sandboxes that run, each waited for and read by a task of the caller's."""

    async def read(sandbox_request: SandboxRequest, runner: ScriptedRunner) -> None:
        sandbox = await runner.start(sandbox_request)
        async for _ in sandbox.output():
            pass
        await sandbox.wait()

    clock = ManualClock()
    async with ScriptedRunner(sleeps, clock=clock) as runner:
        requests = [request(str(number)) for number in range(1000)]
        gc.collect()
        tracemalloc.start()
        readers = [asyncio.ensure_future(read(each, runner)) for each in requests]
        await clock.advance(0)
        assert len(runner.running_now) == 1000
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"{used / 1000 / 1024:.1f} KiB a sandbox")
        await clock.advance(10)
        await asyncio.gather(*readers)
        assert runner.most_running == 1000
        assert used / 1000 < 30 * 1024


async def test_an_ended_sandbox_is_forgotten() -> None:
    """Not kept until its timeout would have come: a run of many steps would keep them all."""
    async with ScriptedRunner(sleeps) as runner:
        await (await runner.start(request())).terminate()
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, ScriptedSandbox)]


@pytest.fixture
def lab() -> Lab:
    return Lab()
