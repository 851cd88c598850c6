"""`modal-prefect resume`."""

from __future__ import annotations

from uuid import UUID

import click

from bridge.commands.failure import told_plainly


@click.command()
@click.argument("run_id", metavar="ID", type=click.UUID)
@click.option("--yes", "sure", is_flag=True, help="Its process is gone, also where nothing tells so.")
@click.option("--here", is_flag=True, help="Go on in this process, also where a worker could.")
def resume(run_id: UUID, sure: bool, here: bool) -> None:
    """Go on with a run whose flow died. ID is the flow run's, or the ZenML run's.

    Finished steps stay finished, running sandboxes go on. A worker of its work pool takes the flow run up; where it
    has none it goes on in this process. A flow run that Prefect still calls Running is marked as Crashed first, if
    its process is gone: one that is alive is left alone.
    """
    from bridge.flow_run.revival import resume as resume_run

    with told_plainly():
        resume_run(run_id, sure=sure, here=here, say=lambda text: click.echo(text, err=True))
