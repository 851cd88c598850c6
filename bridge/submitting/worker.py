"""A process worker of Prefect's that drains: asked to stop, it takes no further run and leaves after its last one.

Prefect's own, asked by SIGTERM or Ctrl-C, cancels itself and kills the processes of its flow runs at once, without a
signal that they could answer (``prefect/workers/base.py`` and ``prefect/utilities/processutils``; seen with 3.7.7 and
3.8.8). Their sandboxes go on, and the runs can be resumed, but nobody does that by itself.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass

from prefect.workers.process import ProcessWorker

SIGNALS = (signal.SIGTERM, signal.SIGINT)


# An abstract base, so that Prefect doesn't take this class for the one of its own worker type `process`
# (prefect/utilities/dispatch.py, `_register_subclass_of_base_type`).
class DrainingWorker(ProcessWorker, abc.ABC):
    """A process worker whose cancelled ``start`` ends only after the runs that it has begun have ended."""

    async def __aexit__(self, *exc_info: object) -> None:
        # Told of no exception, the group of the runs' tasks isn't cancelled but waited for.
        await super().__aexit__(None, None, None)


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker takes, as ``prefect worker start`` has it; None is Prefect's own default."""

    pool: str
    name: str | None = None
    queues: tuple[str, ...] = ()
    limit: int | None = None
    healthcheck: bool = False


async def work(options: WorkerOptions, say: Callable[[str], None]) -> None:
    """Run a worker until SIGTERM or Ctrl-C, and then until its last flow run has ended.

    A second signal acts as it does on any program: the worker dies, and its flows with it.
    """
    worker = DrainingWorker(
        work_pool_name=options.pool,
        work_queues=list(options.queues) or None,
        name=options.name,
        limit=options.limit,
        create_pool_if_not_found=False,
    )
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(worker.start(with_healthcheck=options.healthcheck, printer=say))

    def drain() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        say("Draining: no further run is taken, the worker leaves when its last one has ended. Once more kills them.")
        running.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, drain)
    with contextlib.suppress(asyncio.CancelledError):
        await running
