"""Artifacts and images in Amazon's, Google's and Azure's stores and registries, by service connectors whose credentials
are over before the run is: in processes, and in sandboxes on Modal."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import databases, servers
from tests.integration import cloud_azure, clouds
from tests.integration.cloud_google import PROJECT_ID, Google
from tests.integration.cloud_program import FOUND, Request
from tests.integration.lab import PROJECT, STACK_CODE, Lab
from tests.loopback import LoopbackImage, SandboxRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "AKIALONGLIVED0000000"
ACCOUNT = "123456789012"
SHORTEST = 900
"""Seconds: no session of AWS's STS is shorter."""
TOO_SOON = 225
"""Seconds before the end of a token at which Google's library takes it for over (google/auth/_helpers.py)."""
AZURES_MARGIN = 240
"""The same of Azure's: 300, less up to 60 that it draws by lot (azure/core/pipeline/policies/_authentication.py)."""
AZURES_PAUSE = 30
"""Seconds in which it asks for no other token (azure/identity/_constants.py, ``DEFAULT_TOKEN_REFRESH_RETRY_DELAY``)."""
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of Azurite's account, the same for everybody: learn.microsoft.com/azure/storage/common/storage-use-azurite."""
LIFE = 15
"""Seconds for which credentials count as good; the step in the middle takes longer."""


def run(lab: Lab, folder: Path, request: Request, *, server: servers.Server | None = None, **variables: str) -> Any:
    """Run it in the environment that has the clouds' libraries, with a ZenML store of its own, or that of a server."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith(("ZENML", "AWS"))}
    environment = {**outer, **servers.zenml_client_environment(folder / "zenml", server), **variables}
    environment["PYTHONPATH"] = f"{STACK_CODE}:{PROJECT}:{servers.ROOT}"
    if server is None:
        databases.put("zenml", folder / "zenml" / databases.ZENML_STORE)
    program = servers.ROOT / "tests" / "integration" / "cloud_program.py"
    argv = [str(clouds.PYTHON), str(program), request.line()]
    done = subprocess.run(argv, env=environment, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads((folder / FOUND).read_text())
    assert found["status"] == "completed"
    assert found["steps"] == dict.fromkeys(("make", "outlast", "last"), "completed")
    assert found["total"] == sum(range(1000)) + 1
    return found


def run_on_modal(
    lab: Lab, folder: Path, request: Request, pulled_by: Callable[[str, str], bool], **variables: str
) -> list[SandboxRecord]:
    """Run it with its ZenML server beside it, in sandboxes of a private image, which are returned.

    ``variables`` lead ZenML's server, the submitting process and the sandboxes to the clouds' emulators.
    """
    image = LoopbackImage(clouds.PYTHON, env={"ZENML_ANALYTICS_OPT_IN": "false", **variables}, credentials=pulled_by)
    lab.modal.image_changes(request.image, image)
    server = clouds.zenml(folder, variables).start()
    try:
        found = run(lab, folder, request, server=server, **variables)
    finally:
        server.stop()
    boxes = [box for box in lab.modal.sandboxes() if box.tags.get("zenml_run_id") == found["run"]]
    assert boxes
    return boxes


def check_renewed(read: set[str], wrote: set[str]) -> None:
    """The step in the middle read its input with other credentials than it wrote its output with."""
    assert read, "the artifact was read there"
    assert wrote, "and another written"
    assert not read & wrote, "with credentials of another session"


def make_container(url: str, **variables: str) -> str:
    """Make the container ``far`` of an Azurite, and return what a client connects to its account with."""
    account = (
        f"DefaultEndpointsProtocol={url.partition(':')[0]};AccountName={cloud_azure.ACCOUNT};AccountKey={AZURITE_KEY};"
    )
    account += f"BlobEndpoint={url}/{cloud_azure.ACCOUNT};"
    code = "import sys; from azure.storage.blob import BlobServiceClient as C;"
    code += "C.from_connection_string(sys.argv[1]).create_container('far')"
    subprocess.run([str(clouds.PYTHON), "-c", code, account], env={**os.environ, **variables}, check=True)
    return account


def aws(url: str) -> dict[str, Any]:
    """A service connector that makes sessions of :data:`LIFE` seconds, by the account's key."""
    return {
        "connector_type": "aws",
        "auth_method": "iam-role",
        "configuration": {
            "aws_access_key_id": KEY,
            "aws_secret_access_key": "never in a sandbox",
            "region": "us-east-1",
            "endpoint_url": url,
            "role_arn": f"arn:aws:iam::{ACCOUNT}:role/zenml",
        },
        "expiration_seconds": SHORTEST,
        "expires_skew_tolerance": SHORTEST - LIFE,
    }


@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
@pytest.mark.parametrize("place", ["process", "modal"])
def test_s3_with_credentials_that_are_renewed_in_a_step(lab: Lab, tmp_path: Path, place: str, mode: str) -> None:
    """On Modal the same connector logs in to ECR."""
    server = clouds.s3(tmp_path).start()
    # For STS, whose address and region the connector doesn't ask for.
    variables = {"AWS_ENDPOINT_URL": server.url, "AWS_DEFAULT_REGION": "us-east-1"}
    store = {"client_kwargs": {"endpoint_url": server.url}}
    ecr = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com"
    try:
        clouds.make_bucket(server, "far")
        clouds.make_repository(server, "ml")
        request = Request(
            *("s3", "s3://far/zenml", str(tmp_path), mode, store),
            connector=aws(server.url),
            seconds=LIFE + 5,
            image=f"{ecr}/ml:{uuid4().hex[:8]}" if place == "modal" else "",
            registry=("aws", ecr),
        )
        if place == "modal":
            login = "AWS", f"{ACCOUNT}-auth-token"
            boxes = run_on_modal(lab, tmp_path, request, lambda *given: given == login, **variables)
            assert not [box for box in boxes if login[1] in repr(box)], "no sandbox has the registry's password"
        else:
            run(lab, tmp_path, request, **variables)
        asked = list(clouds.asked(server))
    finally:
        server.stop()
    read = {key for method, path, key in asked if method == "GET" and "/make/output/" in path}
    wrote = {key for method, path, key in asked if method == "PUT" and "/outlast/output/" in path}
    check_renewed(read, wrote)
    assert KEY not in read | wrote


@pytest.mark.parametrize(("place", "mode"), [("process", "pipeline"), ("modal", "per_step")])
def test_cloud_storage_with_tokens_that_are_renewed_in_a_step(lab: Lab, tmp_path: Path, place: str, mode: str) -> None:
    """On Modal the same connector logs in to Artifact Registry."""
    server = clouds.gcs(tmp_path).start()
    # An address of theirs that ZenML doesn't look up: it would by gRPC, which nothing here answers.
    registry = f"eu.gcr.io/{PROJECT_ID}"
    try:
        with Google(server.url, life=TOO_SOON + LIFE) as google:
            connector = {
                "connector_type": "gcp",
                "auth_method": "service-account",
                "configuration": {"project_id": PROJECT_ID, "service_account_json": google.key()},
                "expires_skew_tolerance": TOO_SOON,
            }
            request = Request(
                *("gcp", "gs://far/zenml", str(tmp_path), mode),
                connector=connector,
                seconds=LIFE + 5,
                image=f"{registry}/ml:{uuid4().hex[:8]}" if place == "modal" else "",
                registry=("gcp", registry),
            )
            variables = {"STORAGE_EMULATOR_HOST": google.url}
            if place == "modal":
                boxes = run_on_modal(
                    *(lab, tmp_path, request, lambda who, token: who == "oauth2accesstoken" and token in google.given),
                    **variables,
                )
                assert not [box for box in boxes if "ya29." in repr(box)], "no sandbox begins with a token"
            else:
                run(lab, tmp_path, request, **variables)
            asked = list(google.asked)
    finally:
        server.stop()
    read = {token for method, path, token in asked if method == "GET" and "make" in path and "output" in path}
    wrote = {token for method, path, token in asked if method == "POST" and "outlast" in path and "output" in path}
    check_renewed(read, wrote)


@pytest.mark.parametrize(("place", "mode"), [("process", "pipeline"), ("modal", "per_step")])
def test_blob_storage_with_tokens_that_are_renewed_in_a_step(lab: Lab, tmp_path: Path, place: str, mode: str) -> None:
    """By Azure's own library, which the service connector's client id and secret are given to.

    On Modal the same connector logs in to Azure's Container Registry, by these.
    """
    authority = cloud_azure.Authority(tmp_path)
    server = clouds.azurite(tmp_path, authority)
    if server is None:
        pytest.skip("Azurite needs Node.js")
    server.start()
    registry = f"{cloud_azure.REGISTRY}.azurecr.io"
    principal = {"tenant_id": cloud_azure.TENANT, "client_id": cloud_azure.CLIENT, "client_secret": cloud_azure.SECRET}
    try:
        with cloud_azure.Azure(
            server.url, authority=authority, verify=authority.context(), life=AZURES_MARGIN + LIFE
        ) as cloud:
            make_container(server.url, **cloud.variables)
            request = Request(
                *("azure", "az://far/zenml", str(tmp_path), mode),
                connector={
                    "connector_type": "azure",
                    "auth_method": "service-principal",
                    "configuration": {
                        **principal,
                        "subscription_id": cloud_azure.SUBSCRIPTION,
                        "storage_account": cloud_azure.ACCOUNT,
                    },
                },
                seconds=AZURES_PAUSE + 5,
                image=f"{registry}/ml:{uuid4().hex[:8]}" if place == "modal" else "",
                registry=("azure", registry),
            )
            if place == "modal":
                login = cloud_azure.CLIENT, cloud_azure.SECRET
                boxes = run_on_modal(lab, tmp_path, request, lambda *given: given == login, **cloud.variables)
                assert not [box for box in boxes if cloud_azure.SECRET in repr(box)]
            else:
                run(lab, tmp_path, request, **cloud.variables)
            asked = list(cloud.asked)
    finally:
        server.stop()
    read = {token for method, path, token in asked if method == "GET" and "/make/output/" in path}
    # Not the folder for it, which is made before the step's own code runs.
    wrote = {
        token for method, path, token in asked if method == "PUT" and re.search("/outlast/output/.*/data.json", path)
    }
    check_renewed(read, wrote)


def test_cloud_storage(lab: Lab, tmp_path: Path) -> None:
    """Without a service connector."""
    server = clouds.gcs(tmp_path).start()
    try:
        request = Request("gcp", "gs://far/zenml", str(tmp_path), "per_step")
        assert run(lab, tmp_path, request, STORAGE_EMULATOR_HOST=server.url)["uri"].startswith("gs://far/zenml/")
    finally:
        server.stop()


def test_blob_storage(lab: Lab, tmp_path: Path) -> None:
    """Without a service connector."""
    server = clouds.azurite(tmp_path)
    if server is None:
        pytest.skip("Azurite needs Node.js")
    server.start()
    try:
        account = make_container(server.url)
        request = Request("azure", "az://far/zenml", str(tmp_path), "per_step", secret={"connection_string": account})
        assert run(lab, tmp_path, request)["uri"].startswith("az://far/zenml/")
    finally:
        server.stop()
