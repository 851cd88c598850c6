"""`modal-prefect plan`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from bridge.commands.failure import told_plainly

if TYPE_CHECKING:
    from bridge.prices import NoPrices, Prices
    from bridge.settings import RunnerConfig

PATIENCE_SECONDS = 10.0
"""How long Modal is asked for its prices: the plan is worth more than they are."""


@click.command()
@click.argument("what", metavar="SNAPSHOT_OR_PIPELINE")
def plan(what: str) -> None:
    """Print what a run would do: graph, commands, machines and their prices, images, warm sandboxes. Starts nothing.

    SNAPSHOT_OR_PIPELINE is the id of a snapshot (`zenml pipeline snapshot list` shows them), or the name of a
    pipeline, of which the newest snapshot is meant.
    """
    import sys

    from bridge.open_run import load_stack
    from bridge.preview import as_text, describe
    from bridge.snapshots import find_snapshot

    with told_plainly():
        snapshot = find_snapshot(what)
        _, orchestrator = load_stack(snapshot)
        runner = orchestrator.config.runner
        # As the runners say of themselves (`can_call`): a step host needs Linux, which Modal's sandboxes are.
        can_share = runner == "modal" or sys.platform == "linux"
        translation = orchestrator.translation(snapshot)
        orchestrator.announce(snapshot, translation)
        prices = asyncio.run(_ask_prices(orchestrator.config))
        click.echo(as_text(describe(translation.plan, runner, can_share=can_share, prices=prices)))


async def _ask_prices(config: RunnerConfig) -> Prices | NoPrices | None:
    """What machines cost with the component's account, or this machine's; None where they cost nothing."""
    from bridge.errors import RunnerError
    from bridge.prices import NoPrices
    from bridge.runners import create
    from bridge.runners.base import HasPrices

    runner = create(
        config.runner, token_id=config.token_id, token_secret=config.token_secret, outage=PATIENCE_SECONDS / 2
    )
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
