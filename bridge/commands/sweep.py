"""`modal-prefect sweep`."""

from __future__ import annotations

import click

from bridge.cleanup.lease import CLOCKS_SECONDS
from bridge.commands.failure import told_plainly


@click.command()
@click.option("--stack", help="The stack to look at. Default: the active one.")
@click.option("--all", "everything", is_flag=True, help="Look at all stacks with a component of this package.")
@click.option("--yes", is_flag=True, help="End what nobody owns. Without it, nothing is changed.")
@click.option(
    "--modal-environment",
    "environments",
    multiple=True,
    help="Look for sandboxes in this Modal environment too, besides the components' own. May be given again.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=CLOCKS_SECONDS,
    show_default=True,
    help="By how many seconds the clocks of two machines may differ.",
)
def sweep(stack: str | None, everything: bool, yes: bool, environments: tuple[str, ...], tolerance: float) -> None:
    """List the runs and sandboxes that nobody works on any more, and with --yes end them.

    A run whose flow is at work, or may come back, is never touched, nor one of which nothing certain is known.
    """
    from bridge.cleanup.ownership import Owner
    from bridge.cleanup.sweep import stacks, sweep_each

    if stack is not None and everything:
        raise click.UsageError("--stack and --all exclude each other.")
    with told_plainly():
        found = stacks(stack, everything)
        reports = sweep_each(found, end=yes, modal_environments=environments, tolerance=tolerance)
    for report in reports:
        for line in report.lines():
            click.echo(line)
    nobodys = sum(len(report.of(Owner.NOBODY)) for report in reports)
    if nobodys and not yes:
        click.echo("Nothing was changed. `modal-prefect sweep --yes` ends what nobody owns.")
    if problems := [f"stack {report.stack}: {problem}" for report in reports for problem in report.problems]:
        raise click.ClickException("\n".join(problems))
