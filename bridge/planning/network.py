"""What a sandbox may reach: which wishes make no sense together, or for what runs in it. No clock, network or
environment."""

from __future__ import annotations

from bridge.errors import NotTranslatable
from bridge.settings import SandboxSettings

ALLOWLISTS = ("outbound_cidr_allowlist", "outbound_domain_allowlist")
FIELDS = ("block_network", *ALLOWLISTS)
"""The settings that say it."""


def check_network(settings: SandboxSettings, where: str, *, needs_zenml: bool) -> None:
    """Refuse what contradicts itself, and a sandbox without network whose program has to reach ZenML.

    ``needs_zenml`` is False for a command alone, which tells ZenML nothing. Raises ``NotTranslatable``.
    """
    values = vars(settings)
    if not values["block_network"]:
        return
    for field in ALLOWLISTS:
        if values[field]:
            raise NotTranslatable(
                f"{field} of {where}",
                values[field],
                "block_network=True allows nothing at all",
                f"Take one of the two away: {field} alone allows what it names and nothing else",
            )
    if needs_zenml:
        raise NotTranslatable(
            f"block_network of {where}",
            True,
            "what runs there talks to ZenML's server and to the artifact store; only the command of a command step "
            "needs no network",
            "Name what it may reach in outbound_cidr_allowlist or outbound_domain_allowlist, those two among them",
        )
