"""`modal-prefect plan`."""

from __future__ import annotations

import click

from bridge.commands.failure import told_plainly


@click.command()
@click.argument("what", metavar="SNAPSHOT_OR_PIPELINE")
def plan(what: str) -> None:
    """Print what a run would do: graph, commands, machines, images, warm sandboxes. Starts nothing.

    SNAPSHOT_OR_PIPELINE is the id of a snapshot (`zenml pipeline snapshot list` shows them), or the name of a
    pipeline, of which the newest snapshot is meant.
    """
    import sys

    from bridge.preview import as_text, describe
    from bridge.run import load_stack
    from bridge.snapshots import find_snapshot

    with told_plainly():
        snapshot = find_snapshot(what)
        _, orchestrator = load_stack(snapshot)
        runner = orchestrator.config.runner
        # As the runners say of themselves (`can_call`): a step host needs Linux, which Modal's sandboxes are.
        can_share = runner == "modal" or sys.platform == "linux"
        click.echo(as_text(describe(orchestrator.plan(snapshot), runner, can_share=can_share)))
