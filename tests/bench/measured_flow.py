"""A process of its own: runs one snapshot as ``bridge.flow`` does, on the scripted runner, and measures itself.

As a worker does, it knows the snapshot only by its id.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID

import psutil
from prefect.client.schemas.objects import State
from zenml.client import Client
from zenml.pipelines.run_utils import create_placeholder_run

from bridge.flow_run.carrying_out import carry_out
from bridge.flow_run.open_run import load_snapshot, load_stack
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.flow_run.run import Run
from bridge.runners.base import SandboxRequest
from bridge.runners.scripted import ScriptedRunner, Stage
from bridge.submitting.submission import create_flow_run
from bridge.upstream_prefect import run_existing_flow_run
from bridge.watching.terminal import show_run
from tests.bench.answers import answer, asked
from tests.bench.outside import Outside
from tests.flows import flow_of


@dataclass(frozen=True)
class Use:
    """What this process has at a moment. ``rss`` and ``peak`` are in MB."""

    rss: float
    peak: float
    threads: int
    fds: int
    cpu: float
    """Seconds of processor time, all its own."""


@dataclass
class Figures:
    """What was measured; times are seconds since the graph began."""

    flow_run_id: str = ""
    run_id: str = ""
    state: str = ""
    flow_seconds: float = 0.0
    """The whole flow run, as the caller waits for it."""
    graph_seconds: float = 0.0
    """``carry_out``: from the first step's start to the word that ZenML has of the run's end."""
    most_running: int = 0
    sandboxes: dict[str, list[float]] = field(default_factory=dict)
    """For each step: its sandbox began, ZenML had its step run, its work was done, its sandbox ended."""
    idle: Use | None = None
    all_running: Use | None = None
    """When as many ran at once as ever should."""
    end: Use | None = None
    outside_cpu: float = 0.0
    """Seconds of processor time of the process that plays the sandboxes' half."""


def use() -> Use:
    """Measure this process."""
    process = psutil.Process()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    cpu = process.cpu_times()
    rss = process.memory_info().rss / 2**20
    return Use(rss, peak, process.num_threads(), process.num_fds(), cpu.user + cpu.system)


def forget_peak() -> None:
    """Let the kernel count the peak of this process's memory from now on (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


class Sandboxes:
    """What each sandbox does: create its step run, work, write a line, publish its end.

    It lives for ``seconds``, both reports included, as long as ZenML answers fast enough for that. With ``once`` it
    reports at its end alone.
    """

    def __init__(
        self, figures: Figures, outside: Outside, seconds: float, meet: int | None, *, once: bool = False
    ) -> None:
        self._once = once
        self._report_seconds = 0.0
        self.began = asyncio.get_running_loop().time()
        self._figures = figures
        self._outside = outside
        self._seconds = seconds
        self._meet = meet
        self._working = 0
        self._met = asyncio.Event()

    async def __call__(self, request: SandboxRequest, stage: Stage) -> SandboxEnd:
        step = request.command[request.command.index("--step") + 1]
        times = self._figures.sandboxes[step] = [self._now()]
        stage.write(f"{step} begins\n")
        if self._once:
            return await self._report_once(step, times, stage)
        step_run = await self._outside.begin(step)
        times.append(self._now())
        await self._meet_the_others()
        report = times[1] - times[0]  # taken as a guess for how long the other one will take
        await stage.sleep(max(0.0, self._seconds - 2 * report))
        times.append(self._now())
        await self._outside.end(step_run)
        stage.write(f"{step} ends\n")
        times.append(self._now())
        return SandboxEnd(End.EXITED, 0)

    async def _report_once(self, step: str, times: list[float], stage: Stage) -> SandboxEnd:
        began = datetime.now(timezone.utc)
        times.append(self._now())
        await stage.sleep(max(0.0, self._seconds - self._report_seconds))
        times.append(self._now())
        await self._outside.report(step, began)
        stage.write(f"{step} ends\n")
        times.append(self._now())
        self._report_seconds = times[-1] - times[-2]  # a guess for how long the next one will take
        return SandboxEnd(End.EXITED, 0)

    async def _meet_the_others(self) -> None:
        if self._meet is None:
            return
        self._working += 1
        if self._working == self._meet:
            self._figures.all_running = use()
            self._met.set()
        await self._met.wait()

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self.began


async def measure_run(
    run: Run, figures: Figures, seconds: float, meet: int | None, *, once: bool = False
) -> State[None]:
    """Carry the run out and measure."""
    socket = str(Path(tempfile.mkdtemp(prefix="bench-")) / "outside")
    outside = Outside(Client().zen_store.url, str(run.run.project_id), run.id, socket)
    async with outside:
        sandboxes = Sandboxes(figures, outside, seconds, meet, once=once)
        runner = ScriptedRunner(sandboxes)
        forget_peak()
        figures.idle = use()
        state = await carry_out(run, runner)
        figures.graph_seconds = asyncio.get_running_loop().time() - sandboxes.began
        figures.end = use()
        figures.most_running = runner.most_running
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures.outside_cpu = gone.ru_utime + gone.ru_stime
    return state


def main(snapshot_id: str, seconds: float, meet: int | None, *, once: bool) -> Figures:
    """Make the ZenML run and its flow run, as a submission does, and run it here."""
    figures = Figures()
    snapshot = load_snapshot(UUID(snapshot_id))
    _, orchestrator = load_stack(snapshot)
    plan = orchestrator.plan(snapshot)
    placeholder = create_placeholder_run(snapshot)
    flow_run, _ = create_flow_run(snapshot, placeholder, plan)
    figures.flow_run_id, figures.run_id = str(flow_run.id), str(placeholder.id)
    measured = flow_of(lambda run: measure_run(run, figures, seconds, meet, once=once), plan.pipeline)
    begin = time.monotonic()
    with show_run():
        state = run_existing_flow_run(measured, flow_run, dict(flow_run.parameters))
    figures.flow_seconds = time.monotonic() - begin
    figures.state = state.name or ""
    return figures


if __name__ == "__main__":
    wanted = asked()
    answer(asdict(main(wanted["snapshot_id"], wanted["seconds"], wanted["meet"], once=wanted["once"])))
