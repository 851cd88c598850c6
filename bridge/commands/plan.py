"""`modal-prefect plan`."""

from __future__ import annotations

from uuid import UUID

import click

from bridge.commands.failure import told_plainly


@click.command()
@click.argument("snapshot_id", type=click.UUID)
def plan(snapshot_id: UUID) -> None:
    """Print what a run of SNAPSHOT_ID would do: its steps, their order, machines and retries. Starts nothing.

    `zenml pipeline snapshot list` shows the ids.
    """
    from bridge.run import load_snapshot, load_stack

    with told_plainly():
        snapshot = load_snapshot(snapshot_id)
        _, orchestrator = load_stack(snapshot)
        click.echo(str(orchestrator.plan(snapshot)))
