"""Whether this machine's clock agrees with those of the servers: tokens, schedules and leases compare them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime

import httpx
from prefect.settings import PREFECT_API_URL
from zenml.enums import StoreType

from bridge.cleanup.lease import CLOCKS_SECONDS
from bridge.doctor.finding import Finding, Grade
from bridge.doctor.patient import Patient, Unmet
from bridge.errors import InvalidSettings
from bridge.prefect_side.prefect_api import prefect_settings

NOTICED_SECONDS = 5.0
"""A ``Date`` header has whole seconds, and an answer takes its time."""
_PATIENCE = 10.0


def clocks(patient: Patient) -> Iterator[Finding]:
    """How far this machine's clock is from those of ZenML and Prefect."""
    yield from compared(_servers(patient))


def prefects_clock(patient: Patient) -> Iterator[Finding]:
    """How far it is from that of the Prefect server that this machine is configured for: all that ZenML needn't say."""
    if url := PREFECT_API_URL.value():
        yield from compared([("Prefect's server", f"{url}/health")])


def compared(servers: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """How far this machine's clock is from those of servers, each with its name and a URL that it answers."""
    check, agreed = "clocks", []
    for whose, url in servers:
        ahead = _ahead(url)
        if ahead is None:
            continue
        if abs(ahead) <= NOTICED_SECONDS:
            agreed.append(whose)
            continue
        how = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {whose}"
        grade = Grade.PROBLEM if abs(ahead) > CLOCKS_SECONDS else Grade.NOTE
        yield Finding(check, grade, f"this machine's clock is {how}", "Set it by NTP: `sudo timedatectl set-ntp true`")
    if agreed:
        yield Finding(check, Grade.OK, f"agrees with {' and '.join(agreed)}")


def _servers(patient: Patient) -> Iterator[tuple[str, str]]:
    if patient.store.type == StoreType.REST:
        yield "ZenML's server", f"{patient.store.url}/health"
    try:
        with prefect_settings(patient.orchestrator_config):
            if url := PREFECT_API_URL.value():
                yield "Prefect's server", f"{url}/health"
    except (Unmet, InvalidSettings):
        return  # what is wrong with the orchestrator is another check's matter


def _ahead(url: str) -> float | None:
    """Seconds that this machine is ahead of a server; None where it doesn't say."""
    before = time.time()
    try:
        answer = httpx.get(url, timeout=_PATIENCE)
    except (httpx.HTTPError, httpx.InvalidURL):
        return None  # whether it answers at all is another check's matter
    said = answer.headers.get("date")
    if said is None:
        return None
    # The header is cut down to the second: half of one is the best guess.
    return (before + time.time()) / 2 - (parsedate_to_datetime(said).timestamp() + 0.5)
