"""Whether a work pool can take a run, and who would pick it up."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import WorkerStatus, WorkQueue
from prefect.exceptions import ObjectNotFound

from bridge import names
from bridge.errors import InvalidSettings

if TYPE_CHECKING:
    from bridge.settings import ModalPrefectOrchestratorConfig


def check_pool(client: SyncPrefectClient, config: ModalPrefectOrchestratorConfig, work_queue: str | None) -> str:
    """Return the name of the component's work pool.

    Raises ``InvalidSettings`` where runs in it would wait for ever: there is no such pool, or it or the queue is
    paused, which is the pool's own where ``work_queue`` is None. A queue that doesn't exist yet is no error: Prefect
    makes it.
    """
    name = config.work_pool
    if name is None:
        raise ValueError("the component has no work pool")
    try:
        pool = client.read_work_pool(names.url_segment(name))
    except ObjectNotFound:
        # Under a wrong URL there is nothing at all, which this call tells apart by raising.
        others = ", ".join(sorted(found.name for found in client.read_work_pools(limit=10)))
        raise InvalidSettings(
            "work_pool",
            name,
            f"Prefect has no such work pool (it has {others or 'none'})",
            f"Create it with `prefect work-pool create {shlex.quote(name)} --type process`, or choose another",
        ) from None
    if pool.is_paused:
        fix = f"Resume it with `prefect work-pool resume {shlex.quote(name)}`"
        raise InvalidSettings("work_pool", name, "the work pool is paused, so nothing would pick up the run", fix)
    queue = (
        _named(client, name, work_queue) if work_queue is not None else client.read_work_queue(pool.default_queue_id)
    )
    if queue is not None and queue.is_paused:
        fix = f"Resume it with `prefect work-queue resume {shlex.quote(queue.name)} --pool {shlex.quote(name)}`"
        raise InvalidSettings("work_queue", queue.name, "the queue is paused, so nothing would pick up the run", fix)
    return name


def _named(client: SyncPrefectClient, pool: str, queue: str) -> WorkQueue | None:
    try:
        return client.read_work_queue_by_name(names.url_segment(queue), work_pool_name=names.url_segment(pool))
    except ObjectNotFound:
        return None


def default_queue(client: SyncPrefectClient, pool: str) -> str:
    """Return the name of the pool's own queue, for runs whose settings name none."""
    found = client.read_work_pool(names.url_segment(pool))
    return client.read_work_queue(found.default_queue_id).name


def check_process_pool(client: SyncPrefectClient, name: str) -> None:
    """Raise ``InvalidSettings`` unless there is such a pool and its runs are processes of its workers."""
    try:
        pool = client.read_work_pool(names.url_segment(name))
    except ObjectNotFound:
        fix = f"Create it with `prefect work-pool create {shlex.quote(name)} --type process`"
        raise InvalidSettings("--pool", name, "Prefect has no such work pool", fix) from None
    if pool.type != "process":
        problem = f"the work pool is of type {pool.type}, whose runs aren't processes of its worker: nothing to drain"
        fix = f"Start its worker with `prefect worker start --pool {shlex.quote(name)}`"
        raise InvalidSettings("--pool", name, problem, fix)


def nobody_works(client: SyncPrefectClient, pool: str) -> str | None:
    """Return what to do where no worker is online for the pool; None if one is, or the pool needs none."""
    name = shlex.quote(pool)
    try:
        found = client.read_work_pool(names.url_segment(pool))
    except ObjectNotFound:
        return f"The work pool {name} was deleted, so nothing picks up the run. Cancel it, and submit it anew."
    if found.is_push_pool or found.is_managed_pool:
        return None
    workers = client.read_workers_for_work_pool(names.url_segment(pool))
    if any(worker.status == WorkerStatus.ONLINE for worker in workers):
        return None
    # Prefect's own worker of a process pool would do as well, but kills its flows when it is stopped.
    worker = "modal-prefect worker" if found.type == "process" else "prefect worker start"
    return (
        f"No worker is online for the work pool {name}, so nothing picks up the run. Start one where this package is "
        f"installed: {worker} --pool {name}"
    )
