"""Modal's prices, as its API tells them of one workspace."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from importlib.metadata import version

import modal

from bridge.planning.prices import NoPrices, Prices

_CPU, _MEMORY = "cpu_hour_cost_sandbox", "mem_gib_hour_cost_sandbox"
_GPU = "gpu_hour_cost_"
"""Names in Modal's answer. The SDK doesn't document them: they are what `modal billing rates --json` prints, per unit
and hour (``WorkspaceBillingRatesResponse`` in Modal's api.proto). One that is missing is a price that isn't known."""


async def prices_of(client: modal.Client) -> Prices | NoPrices:
    """Ask for the prices of the client's workspace. Raises what the SDK raises."""
    if not hasattr(modal, "Workspace"):
        return NoPrices(f"Modal's SDK {version('modal')} can't ask for prices, newer ones can")
    rates: Mapping[str, Decimal] = await modal.Workspace.from_context(client=client).billing.rates.aio()
    gpus = {name.removeprefix(_GPU): price for name, price in rates.items() if name.startswith(_GPU)}
    return Prices(rates.get(_CPU), rates.get(_MEMORY), gpus)
