"""``python -m bridge.host pipeline``: a whole static pipeline in this sandbox.

Exit codes: 0, every step succeeded; 1, a step failed; 2, the run was stopped or the sandbox ended from
outside; 3, the host broke before its first step or in a way that is its own defect. ZenML's records say the
same more exactly, step by step.

The user's code is imported in the steps' processes only. ZenML's init and cleanup hooks run there too, once
for each step, since what the init hook makes lives in the memory of the process that runs it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import tempfile
from dataclasses import dataclass

from zenml.config.step_configurations import Step
from zenml.enums import ExecutionMode
from zenml.models import PipelineSnapshotResponse

from bridge import names
from bridge.host import child, forking, preload
from bridge.host.admission import Capacity, Demand, SharedSandbox
from bridge.host.attempt import StepHost
from bridge.host.scheduler import HostPlan, Scheduler
from bridge.host.spawning import SpawnHost
from bridge.host.store import Store
from bridge.host.zygote import Forked
from bridge.plan import FailureMode
from bridge.ready import Fate

COMPLETED, FAILED, STOPPED, BROKEN = 0, 1, 2, 3

_FAILURE_MODES = {
    ExecutionMode.FAIL_FAST: FailureMode.FAIL_FAST,
    ExecutionMode.STOP_ON_FAILURE: FailureMode.STOP_ON_FAILURE,
    ExecutionMode.CONTINUE_ON_FAILURE: FailureMode.CONTINUE_ON_FAILURE,
}

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
        link = _split(loaded)
    except Exception:
        _logger.exception("The pipeline can't start.")
        return BROKEN
    if isinstance(link, Forked):
        child.run(link.attempt, loaded)
    if link is None:
        os._exit(0)  # the zygote at its end: what is left to flush and close is the scheduler's
    try:
        return asyncio.run(_schedule(options, loaded, link))
    except Exception:
        _logger.exception("The host broke.")
        return BROKEN


def _split(loaded: preload.Loaded) -> forking.Link | Forked | SpawnHost | None:
    if loaded.stack is None:
        return SpawnHost()
    preload.disconnect()
    try:
        return forking.split()
    except forking.NoFork as error:
        _logger.warning("Each step gets a process of its own: %s.", error)
        return SpawnHost()


async def _schedule(options: Options, loaded: preload.Loaded, link: forking.Link | SpawnHost) -> int:
    host: StepHost = link if isinstance(link, SpawnHost) else forking.ForkHost(link)
    store = Store(loaded)
    scheduler = Scheduler(
        plan_of(options.snapshot_id, loaded.snapshot), host, store, _admission(options, loaded.snapshot)
    )
    loop = asyncio.get_running_loop()
    terminations: set[asyncio.Task[None]] = set()

    def terminate() -> None:
        terminations.add(asyncio.ensure_future(scheduler.terminate()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminate)
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


def plan_of(snapshot_id: str, snapshot: PipelineSnapshotResponse) -> HostPlan:
    """Return what the scheduler has to know of a snapshot."""
    steps = snapshot.step_configurations
    work_dir = os.environ.get(names.ENV_WORK_DIR)
    if work_dir is not None:
        os.makedirs(work_dir, exist_ok=True)
    return HostPlan(
        snapshot_id=snapshot_id,
        upstream={name: tuple(step.spec.upstream_steps) for name, step in steps.items()},
        retry_delays={name: _retry_delays(step) for name, step in steps.items()},
        failure_mode=_FAILURE_MODES[snapshot.pipeline_configuration.execution_mode],
        work_dir=tempfile.mkdtemp(prefix="steps-", dir=work_dir),
    )


def _retry_delays(step: Step) -> tuple[float, ...]:
    retry = step.config.retry
    if retry is None:
        return ()
    # ZenML multiplies by `backoff`, 0 by default, so that every delay after the first is 0.
    return tuple(float(retry.delay * retry.backoff**number) for number in range(retry.max_retries))


def _admission(options: Options, snapshot: PipelineSnapshotResponse) -> SharedSandbox:
    demands = {name: _demand(step) for name, step in snapshot.step_configurations.items()}
    capacity = Capacity(options.cpu, options.memory, options.gpus)
    return SharedSandbox(capacity, demands, options.max_parallelism)


def _demand(step: Step) -> Demand:
    resources = step.config.resource_settings
    return Demand(
        cpu=float(resources.cpu_count or 0),
        memory=math.ceil(resources.get_memory("MiB") or 0),
        gpus=int(resources.gpu_count or 0),
    )
