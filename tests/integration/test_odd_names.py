"""Names that would be more than a name in a URL, on a real Prefect server: each finds its own object, and no other."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from bridge.flow_run.limits import LimitMissing, check_limit
from bridge.settings import ModalPrefectOrchestratorConfig
from bridge.submitting.deployments import ensure_deployment, find_deployment
from bridge.submitting.work_pool import check_pool, nobody_works
from tests import servers
from tests.integration.workers import make_pool

ODD = ["who?", "c#", "..", "a b", "100% é"]


def test_deployments(prefect_api: servers.Server) -> None:
    make_pool("odd names")
    with get_client(sync_client=True) as client:
        made = {name: ensure_deployment(client, name, "component?", "odd names") for name in [*ODD, "who", "c"]}
        assert len(set(made.values())) == len(made)
        for name, deployment_id in made.items():
            assert ensure_deployment(client, name, "component?", "odd names") == deployment_id
        assert find_deployment(client, "who?", "component") is None


def test_limits(prefect_api: servers.Server) -> None:
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="odd?", limit=1))
    check_limit("odd?")
    for name in ("odd", "odd#", ".."):
        with pytest.raises(LimitMissing):
            check_limit(name)


def test_work_pools(prefect_api: servers.Server) -> None:
    make_pool("pool?")
    with get_client(sync_client=True) as client:
        config = ModalPrefectOrchestratorConfig(work_pool="pool?")
        assert check_pool(client, config, "queue#1") == "pool?"
        assert "modal-prefect worker --pool 'pool?'" in str(nobody_works(client, "pool?"))
