"""`modal-prefect worker`."""

from __future__ import annotations

import asyncio
import os

import click

from bridge.commands.failure import told_plainly


@click.command()
@click.option("--pool", "-p", required=True, help="The work pool, of type process.")
@click.option("--work-queue", "-q", "queues", multiple=True, help="Take runs from this queue only. May be given again.")
@click.option("--limit", "-l", type=click.IntRange(min=1), help="Most flow runs at once. Default: any number.")
@click.option("--name", "-n", help="What Prefect calls this worker. Default: a random name.")
@click.option("--with-healthcheck", is_flag=True, help="Serve /health, as `prefect worker start` does.")
def worker(pool: str, queues: tuple[str, ...], limit: int | None, name: str | None, with_healthcheck: bool) -> None:
    """Run a Prefect worker that lets its runs end when it is asked to stop.

    As `prefect worker start --type process`, which kills them. SIGTERM or Ctrl-C drains it: it takes no further run
    and leaves when its last one has ended. Where sandboxes are local processes, start it in the folder of your code.
    """
    from bridge import names
    from bridge.prefect_side.prefect_api import prefect_api
    from bridge.submitting.work_pool import check_process_pool
    from bridge.submitting.worker import WorkerOptions, work

    with told_plainly():
        with prefect_api() as client:
            check_process_pool(client, pool)
        # Prefect runs each flow in an empty folder. A flow that was submitted by its pipeline knows a better one.
        os.environ.setdefault(names.ENV_SOURCE_ROOT, os.getcwd())
        asyncio.run(work(WorkerOptions(pool, name, queues, limit, with_healthcheck), click.echo))
