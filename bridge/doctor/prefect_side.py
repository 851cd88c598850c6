"""Prefect's API, the work pool and its workers, the deployments of pipelines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import DeploymentStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from bridge import names
from bridge.doctor.finding import Finding, Grade, told
from bridge.doctor.patient import Patient, Unmet
from bridge.errors import InvalidSettings
from bridge.flow import zenml_pipeline
from bridge.prefect_side import prefect_pages
from bridge.prefect_side.prefect_api import prefect_api, prefect_settings
from bridge.submitting.deployments import HOW_TO_RESUME, what_is_paused
from bridge.submitting.work_pool import check_pool, nobody_works
from bridge.sweep_flow import sweep_stacks
from bridge.versions import other_bridge

PATIENCE_SECONDS = 10.0
"""How long a server that doesn't answer is waited for. Prefect's client waits a minute, six times."""
_TAGS = [names.TAG_ZENML, names.TAG_SWEEP]
"""Those of the deployments of pipelines, and of the sweep's in `prefect.yaml`."""
_PARAMETERS = {
    names.FLOW_ENTRYPOINT: zenml_pipeline.parameters,
    names.SWEEP_ENTRYPOINT: sweep_stacks.parameters,
}
"""What each flow of this package takes, by the entrypoint of its deployments."""
_NO_SERVER = (
    "Start a server that stays with `prefect server start`, and `prefect config set "
    "PREFECT_API_URL=http://127.0.0.1:4200/api`"
)


def api(patient: Patient) -> Iterator[Finding]:
    """Whether Prefect's API answers. Raises ``PrefectUnavailable``."""
    check, config = "prefect api", patient.orchestrator_config
    with prefect_settings(config):
        if PREFECT_API_URL.value() is None:
            if config.work_pool is not None:
                what = f"work_pool={config.work_pool!r} needs a Prefect server, and no PREFECT_API_URL is set"
                yield Finding(check, Grade.PROBLEM, what, _NO_SERVER)
            else:
                what = "no PREFECT_API_URL is set: each run starts a server of its own, which takes some ten seconds"
                yield Finding(check, Grade.NOTE, what, _NO_SERVER)
            return
        yield _asked()


def own_api(patient: Patient) -> Iterator[Finding]:
    """Whether the API that this machine is configured for answers: all that can be asked without ZenML.

    Raises ``PrefectUnavailable``.
    """
    if PREFECT_API_URL.value() is None:
        what = "no PREFECT_API_URL is set here, and whether the orchestrator names one is in ZenML"
        yield Finding("prefect api", Grade.SKIPPED, what)
        return
    found = _asked()
    yield replace(found, what=f"{found.what}, as this machine is configured; the orchestrator's is in ZenML")


def _asked() -> Finding:
    """What Prefect's API answers."""
    with _impatiently(), prefect_api() as client:
        there = client.api_version()
        client.read_work_pools(limit=1)  # something that a key is needed for
    differ = of_one_major(there, client.client_version())
    return differ or Finding("prefect api", Grade.OK, f"Prefect {there} at {PREFECT_API_URL.value()}")


def of_one_major(there: str, here: str) -> Finding | None:
    """What is wrong where Prefect's server is of another major release than the client."""
    if there.split(".")[0] == here.split(".")[0]:
        return None
    what = f"Prefect's server is {there}, and the client here is {here}"
    fix = f"Bring the server to {here}, or pip install 'prefect=={there}'"
    return Finding("prefect api", Grade.PROBLEM, what, fix)


def work_pool(patient: Patient) -> Iterator[Finding]:
    """Whether the work pool takes runs, and whether a worker is online for it. Raises ``PrefectUnavailable``."""
    check, config = "work pool", patient.orchestrator_config
    if config.work_pool is None:
        yield Finding(check, Grade.OK, "none: runs are carried out by the process that submits them")
        return
    with _server(patient), _impatiently(), prefect_api() as client:
        try:
            pool = check_pool(client, config, config.work_queue)
        except InvalidSettings as error:
            yield Finding(check, Grade.PROBLEM, f"{error.where}={error.value!r}: {error.problem}", error.fix)
            return
        if warning := nobody_works(client, pool):
            yield told(check, Grade.PROBLEM, warning, f"Start a worker of the pool {shlex.quote(pool)}")
        else:
            yield Finding(check, Grade.OK, f"`{pool}` takes runs, and a worker is online")


def deployments(patient: Patient) -> Iterator[Finding]:
    """Whether the deployments of this package are those of the release that is installed here.

    Raises ``PrefectUnavailable``.
    """
    check, bad = "deployments", False
    with _server(patient), _impatiently(), prefect_api() as client:
        found = [one for one in _all(client) if (one.entrypoint or "").startswith("bridge.")]
        flows = {one.flow_id: client.read_flow(one.flow_id).name for one in found}
    for one in found:
        name = f"{flows[one.flow_id]}/{one.name}"
        again = (
            "Deploy it again: `prefect --no-prompt deploy --all`"
            if one.name in (names.DEPLOYMENT, names.SWEEP)
            else "Run the pipeline once from here, which brings it up to date"
        )
        if one.work_pool_name is None and one.status != DeploymentStatus.READY:
            # Prefect takes a pool that is deleted from its deployments; those that somebody serves have none and are
            # ready.
            bad = True
            what = f"deployment `{name}` has no work pool, so nothing picks up its runs: the pool was deleted"
            yield Finding(check, Grade.PROBLEM, what, again)
        if one.paused and any(schedule.active for schedule in one.schedules):
            bad = True
            yield Finding(check, Grade.NOTE, what_is_paused(name), HOW_TO_RESUME)
        if why := _out_of_date(one):
            bad = True
            yield Finding(check, Grade.NOTE, f"deployment `{name}` is out of date: {why}", again)
    if not bad:
        yield Finding(check, Grade.OK, f"{len(found)} of this package, all up to date" if found else "none yet")


@contextmanager
def _server(patient: Patient) -> Iterator[None]:
    """The settings of the component's Prefect. Raises ``Unmet`` where there is no server that stays."""
    with prefect_settings(patient.orchestrator_config):
        if PREFECT_API_URL.value() is None:
            raise Unmet("there is no Prefect server")
        yield


@contextmanager
def _impatiently() -> Iterator[None]:
    """Who asks how things are wants to hear soon that there is no answer."""
    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: PATIENCE_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def _all(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    ours = DeploymentFilter(tags=DeploymentFilterTags(any_=_TAGS))
    return prefect_pages.each(partial(client.read_deployments, deployment_filter=ours))


def _out_of_date(deployment: DeploymentResponse) -> str | None:
    here = version(names.DISTRIBUTION)
    if other_bridge(deployment.version, here):
        return f"{names.DISTRIBUTION} {deployment.version} made it, and {here} is installed"
    if (takes := _PARAMETERS.get(deployment.entrypoint or "")) is not None:
        schema, wanted = deployment.parameter_openapi_schema or {}, takes.model_dump_for_openapi()
        if schema.get("properties", {}).keys() != wanted.get("properties", {}).keys():
            return "the flow's parameters have changed"
    return None
