"""`modal-prefect watchdog`."""

from __future__ import annotations

import click

from bridge.commands.failure import told_plainly

AFTER_SECONDS = 600
"""How long a flow may be silent: three of Prefect's default heartbeats, and a minute."""


@click.command()
@click.option("--stack", help="The stack whose Prefect API is meant. Default: the active one.")
@click.option(
    "--after",
    type=click.IntRange(min=10),
    default=AFTER_SECONDS,
    show_default=True,
    help="Seconds without a sign of life after which a flow run counts as crashed.",
)
@click.option("--remove", is_flag=True, help="Take the automations away again.")
def watchdog(stack: str | None, after: int, remove: bool) -> None:
    """Have Prefect see when the process of a flow has died, and mark its flow run as Crashed.

    Makes one automation in Prefect, and a second one that runs the sweep if that is deployed. Doing it again changes
    nothing, or brings them up to date.
    """
    from bridge.cleanup import watchdog as automations
    from bridge.cleanup.sweep import orchestrator_of, stacks
    from bridge.prefect_side.prefect_api import prefect_api, prefect_settings, refuse_temporary_server

    with told_plainly():
        (chosen,) = stacks(stack)
        config = orchestrator_of(chosen).config
        with prefect_settings(config):
            refuse_temporary_server("modal-prefect watchdog")
            if not remove:
                automations.check_patience(after)
            with prefect_api() as client:
                if remove:
                    done = automations.take_away(client)
                else:
                    done = automations.set_up(client, after, config.orphan_timeout)
    for one in done:
        click.echo(f"{one.automation}: {one.what}")
    if not done:
        click.echo("There were none.")
    if not remove and len(done) == 1:
        click.echo(
            "Its run in ZenML is ended by `modal-prefect sweep --yes`. For that to happen by itself deploy "
            "`flows/sweep.py` (`prefect deploy --all` does), and call this again."
        )
