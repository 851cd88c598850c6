"""The command `modal-prefect`. Its other commands come with later releases."""

from __future__ import annotations

from uuid import UUID

import click

from bridge import names
from bridge.errors import BridgeError


@click.group(help="Run ZenML pipelines as Prefect flows whose steps run in Modal sandboxes.")
@click.version_option(package_name=names.DISTRIBUTION)
def main() -> None:
    """The group of all commands."""


@main.command()
@click.argument("snapshot_id", type=click.UUID)
def plan(snapshot_id: UUID) -> None:
    """Print what a run of SNAPSHOT_ID would do: its steps, their order, machines and retries. Starts nothing.

    `zenml pipeline snapshot list` shows the ids.
    """
    from bridge.run import load_snapshot, load_stack  # ZenML takes seconds to import, and --help doesn't need it

    try:
        snapshot = load_snapshot(snapshot_id)
        _, orchestrator = load_stack(snapshot)
        click.echo(str(orchestrator.plan(snapshot)))
    except BridgeError as error:
        raise click.ClickException(str(error)) from error
