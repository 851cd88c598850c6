"""What a sandbox may reach: which wishes make no sense together, or for what runs in it. No clock, network or
environment."""

from __future__ import annotations

from urllib.parse import urlsplit

from bridge.errors import NotTranslatable
from bridge.plan import Plan, SandboxSpec
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


def check_ways_to_zenml(plan: Plan, url: str) -> None:
    """:func:`check_way_to_zenml` for each sandbox of a plan. Raises ``NotTranslatable``."""
    if plan.mode.in_one_sandbox:
        check_way_to_zenml(plan.sandbox, "the pipeline", url)
        return
    for step in plan.steps:
        check_way_to_zenml(step.sandbox, f"step {step.name}", url)


def check_way_to_zenml(spec: SandboxSpec, where: str, url: str) -> None:
    """Refuse a sandbox that could never report to ZenML's server, whose ``url`` is the one that it will be told.

    Only where it is certain: which networks the server's name leads to isn't known here, so any of them may be the
    right one; and a store that isn't a server, of this machine's own, has no address. Raises ``NotTranslatable``.
    """
    server = urlsplit(url)
    if not spec.outbound_domains or spec.outbound_cidrs or server.scheme not in ("http", "https"):
        return
    host, networks = server.hostname or "", "name its network in outbound_cidr_allowlist"
    if server.scheme == "http" or server.port not in (None, 443):
        problem = f"domains let TLS on port 443 through and nothing else, and ZenML's server is at {url}"
        fix = f"{networks[0].upper()}{networks[1:]}, or serve ZenML with https on port 443"
    elif not any(_covers(domain.lower(), host) for domain in spec.outbound_domains):
        problem, fix = f"ZenML's server, {url}, isn't among them", f"Add {host!r}, or {networks}"
    else:
        return
    raise NotTranslatable(f"outbound_domain_allowlist of {where}", list(spec.outbound_domains), problem, fix)


def _covers(domain: str, host: str) -> bool:
    return domain in ("*", host) or (domain.startswith("*.") and f".{host}".endswith(domain[1:]))
