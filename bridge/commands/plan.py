"""`modal-prefect plan`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from bridge.commands.failure import told_plainly

if TYPE_CHECKING:
    from bridge.planning.prices import NoPrices, Prices
    from bridge.runners.base import Runner

PATIENCE_SECONDS = 10.0
"""How long Modal is asked for its prices: the plan is worth more than they are."""


@click.command()
@click.argument("what", metavar="SNAPSHOT_OR_PIPELINE")
def plan(what: str) -> None:
    """Print what a run would do: graph, commands, machines and their prices, images, warm sandboxes. Starts nothing.

    SNAPSHOT_OR_PIPELINE is the id of a snapshot (`zenml pipeline snapshot list` shows them), or the name of a
    pipeline, of which the newest snapshot is meant.
    """
    from bridge.flow_run.open_run import load_stack
    from bridge.planning.preview import as_text, describe
    from bridge.planning.snapshots import find_snapshot
    from bridge.runners import create
    from bridge.runners.base import CallsHosts

    with told_plainly():
        snapshot = find_snapshot(what)
        _, orchestrator = load_stack(snapshot)
        config = orchestrator.config
        translation = orchestrator.translation(snapshot)
        orchestrator.announce(snapshot, translation)
        runner = create(
            config.runner, token_id=config.token_id, token_secret=config.token_secret, outage=PATIENCE_SECONDS / 2
        )
        can_share = isinstance(runner, CallsHosts) and runner.can_call
        prices = asyncio.run(_ask_prices(runner))
        click.echo(as_text(describe(translation.plan, config.runner, can_share=can_share, prices=prices)))


async def _ask_prices(runner: Runner) -> Prices | NoPrices | None:
    """What machines cost with the component's account, or this machine's; None where they cost nothing."""
    from bridge.errors import RunnerError
    from bridge.planning.prices import NoPrices
    from bridge.runners.base import HasPrices

    if not isinstance(runner, HasPrices):
        return None

    async def ask() -> Prices | NoPrices:
        async with runner:
            return await runner.prices()

    try:
        return await asyncio.wait_for(ask(), PATIENCE_SECONDS)
    except RunnerError as error:
        return NoPrices(str(error).rstrip("."))
    except asyncio.TimeoutError:
        return NoPrices(f"Modal didn't answer within {PATIENCE_SECONDS:g} s")
