"""``python -m bridge.host pipeline``: a whole static pipeline in this sandbox.

Exit codes: 0, every step succeeded; 1, a step failed; 2, the run was stopped, the sandbox ended from
outside, or its flow is gone; 3, the host broke before its first step or in a way that is its own defect; 77, ZenML's
server doesn't take the sandbox's token any more.
ZenML's records say the same more exactly, step by step.

A step is a fork of this program, or, where that isn't possible or the stack can't be loaded here, a process of its
own; one log line says why. Without the snapshot, its run or its plan there is nothing to schedule: that is 3.

The user's code is imported in the steps' processes only. ZenML's init and cleanup hooks run there too, once
for each step, since what the init hook makes lives in the memory of the process that runs it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import tempfile
from dataclasses import dataclass

from bridge import names
from bridge.flow_run.outcome import TOKEN_REFUSED
from bridge.flow_run.ready import Fate
from bridge.host import forking, orphan, preload, refusal
from bridge.host.admission import Capacity, Demand, SharedSandbox
from bridge.host.attempt import StepHost
from bridge.host.scheduler import Scheduler
from bridge.host.store import Store
from bridge.plan import Plan, Resources

COMPLETED, FAILED, STOPPED, BROKEN = 0, 1, 2, 3
_NO_FLOW = "the flow of this run is gone"
_REFUSED = "ZenML's server refuses the token"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. ``cpu`` in cores, ``memory`` in MiB, of the sandbox; None doesn't limit."""

    snapshot_id: str
    run_id: str
    max_parallelism: int | None = None
    cpu: float | None = None
    memory: int | None = None
    gpus: int | None = None


def main(options: Options) -> int:
    """Run the pipeline and return the exit code. Never returns in a forked child, nor in the zygote."""
    logging.getLogger("bridge").setLevel(logging.INFO)
    try:
        loaded = preload.load(options.snapshot_id, options.run_id)
        plan = preload.plan_of(loaded)
        host = forking.host_of(loaded, "step")
    except Exception as error:
        _logger.exception("The pipeline can't start.")
        return _code_of(error)
    gc.enable()
    try:
        return asyncio.run(_schedule(options, loaded, plan, host))
    except Exception as error:
        _logger.exception("The host broke.")
        return _code_of(error)


def _code_of(error: Exception) -> int:
    return TOKEN_REFUSED if refusal.is_refusal(error) else BROKEN


async def _schedule(options: Options, loaded: preload.Loaded, plan: Plan, host: StepHost) -> int:
    store = Store(loaded)
    scheduler = Scheduler(plan, host, store, admission(options, plan), _work_dir())
    loop = asyncio.get_running_loop()
    terminations: set[asyncio.Task[None]] = set()

    def terminate() -> None:
        terminations.add(asyncio.ensure_future(scheduler.terminate()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminate)

    def begin_end() -> None:
        loop.call_soon_threadsafe(scheduler.drain, _NO_FLOW)

    def cut_off() -> None:
        # How each step ended can't be asked then, which is how the scheduler ends.
        loop.call_soon_threadsafe(scheduler.kill, _REFUSED)

    orphan.watch(begin_end, lambda: loop.call_soon_threadsafe(scheduler.kill, _NO_FLOW), cut_off=cut_off)
    try:
        fates = await scheduler.run()
    finally:
        await scheduler.close()
        store.close()
    return exit_code(set(fates.values()), terminated=bool(terminations))


def exit_code(fates: set[Fate], *, terminated: bool) -> int:
    """Return the exit code of a run whose steps had these fates."""
    if fates <= {Fate.DONE}:
        return COMPLETED
    if terminated:
        return STOPPED
    return FAILED if Fate.FAILED in fates else STOPPED


def _work_dir() -> str:
    """A folder for the folders of the attempts."""
    work_dir = os.environ.get(names.ENV_WORK_DIR)
    if work_dir is not None:
        os.makedirs(work_dir, exist_ok=True)
    return tempfile.mkdtemp(prefix="steps-", dir=work_dir)


def admission(options: Options, plan: Plan) -> SharedSandbox:
    """Return which steps of the plan may share this sandbox."""
    demands = {step.name: _demand(step.sandbox.resources) for step in plan.steps}
    capacity = Capacity(options.cpu, options.memory, options.gpus)
    return SharedSandbox(capacity, demands, options.max_parallelism)


def _demand(resources: Resources) -> Demand:
    return Demand(resources.cpu or 0.0, resources.memory or 0, resources.gpu.count if resources.gpu else 0)
