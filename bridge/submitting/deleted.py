"""A flow run that Prefect doesn't know: was it deleted, or is it in another Prefect than the one that was asked?

Whoever asks may have another profile than who submitted, or none: then Prefect starts a server for that one process,
which knows no flow run at all.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prefect.utilities.urls import url_for
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from bridge import names
from bridge.cleanup import lease, signs_of_life
from bridge.errors import BridgeError
from bridge.flow_run import whereabouts
from bridge.flow_run.open_run import load_snapshot
from bridge.prefect_side.prefect_api import where_it_is

if TYPE_CHECKING:
    from bridge.orchestrator import ModalPrefectOrchestrator


def doubt_of_deletion(run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator) -> str:
    """Say why another Prefect may have the flow run of a run, which this one doesn't know; "" if it was deleted.

    Reads ZenML's run anew. Raises what ZenML's client raises.
    """
    now = Client().zen_store.get_run(run.id)
    sign = signs_of_life.last_sign(now)
    here = url_for("flow-run", obj_id=run.orchestrator_run_id)
    page = now.run_metadata.get(names.METADATA_ORCHESTRATOR_URL)
    if page is not None and str(page) == here and _means_this_prefect(here, sign):
        return ""
    said = f"{where_it_is()} doesn't know flow run {run.orchestrator_run_id} of run {run.id}"
    if is_fresh(sign, orphan_timeout_of(run, orchestrator)):
        age = lease.age(sign, datetime.now(timezone.utc)) or 0.0
        return f"{said}, and its flow gave a sign of life {age:.0f} s ago"
    # Without a sign it may be waiting for a worker, and a paused one gives none for as long as it is paused.
    if not sign or now.status is ExecutionStatus.PAUSED:
        return f"{said}, which was made {f'as {page}' if page else 'where nobody can tell'}"
    return ""


def is_fresh(sign: str, orphan_timeout: float) -> bool:
    """Whether the flow that gave a sign of life may be at work: as the sweep has it, whatever Prefect says."""
    age = lease.age(sign, datetime.now(timezone.utc))
    return age is not None and age <= lease.grace(orphan_timeout) + lease.CLOCKS_SECONDS


def orphan_timeout_of(run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator) -> int:
    """Return the ``orphan_timeout`` of a run, in seconds."""
    if run.snapshot is None:
        return orchestrator.config.orphan_timeout
    try:
        return orchestrator.run_settings(load_snapshot(run.snapshot.id)).orphan_timeout
    except BridgeError:
        # What was asked for then may be refused by now; the component's value is what most runs have.
        return orchestrator.config.orphan_timeout


def _means_this_prefect(page: str, sign: str) -> bool:
    """Whether two processes that call a page so speak of one Prefect: on loopback each machine has its own."""
    host = urlsplit(page).hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return not loopback or not sign or whereabouts.is_there(lease.signer(sign)[0]) is not None
