"""Artifacts in S3, Cloud Storage and Blob Storage, with credentials that are over before the run is."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import databases, servers
from tests.integration import clouds
from tests.integration.cloud_program import FOUND, Request
from tests.integration.lab import PROJECT, STACK_CODE, Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "AKIALONGLIVED0000000"


def run(lab: Lab, folder: Path, request: Request, **variables: str) -> dict[str, Any]:
    """Run it in the environment that has the clouds' libraries, with a ZenML store of its own."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith(("ZENML", "AWS"))}
    environment = {**outer, **servers.zenml_client_environment(folder / "zenml", None), **variables}
    environment["PYTHONPATH"] = f"{STACK_CODE}:{PROJECT}"
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


@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_s3_with_credentials_that_are_renewed_in_a_step(lab: Lab, tmp_path: Path, mode: str) -> None:
    """A service connector makes sessions of 15 s; the step in the middle takes 20."""
    server = clouds.s3(tmp_path).start()
    try:
        clouds.make_bucket(server, "far")
        connector = {
            "connector_type": "aws",
            "auth_method": "iam-role",
            "resource_type": "s3-bucket",
            "configuration": {
                "aws_access_key_id": KEY,
                "aws_secret_access_key": "never in a sandbox",
                "region": "us-east-1",
                "endpoint_url": server.url,
                "role_arn": "arn:aws:iam::123456789012:role/zenml",
            },
        }
        place = {"client_kwargs": {"endpoint_url": server.url}}
        request = Request("s3", "s3://far/zenml", str(tmp_path), mode, place, connector=connector, life=15, seconds=20)
        # For STS, whose address and region the connector doesn't ask for.
        run(lab, tmp_path, request, AWS_ENDPOINT_URL=server.url, AWS_DEFAULT_REGION="us-east-1")
        asked = list(clouds.asked(server))
    finally:
        server.stop()
    read = {key for method, path, key in asked if method == "GET" and "/make/output/" in path}
    wrote = {key for method, path, key in asked if method == "PUT" and "/outlast/output/" in path}
    assert read, "the artifact was read there"
    assert wrote, "and another written"
    assert not read & wrote, "with credentials of another session"
    assert KEY not in read | wrote


def test_cloud_storage(lab: Lab, tmp_path: Path) -> None:
    server = clouds.gcs(tmp_path).start()
    try:
        request = Request("gcp", "gs://far/zenml", str(tmp_path), "per_step")
        assert run(lab, tmp_path, request, STORAGE_EMULATOR_HOST=server.url)["uri"].startswith("gs://far/zenml/")
    finally:
        server.stop()


AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of Azurite's account, the same for everybody: learn.microsoft.com/azure/storage/common/storage-use-azurite."""


def test_blob_storage(lab: Lab, tmp_path: Path) -> None:
    server = clouds.azurite(tmp_path)
    if server is None:
        pytest.skip("Azurite needs Node.js")
    server.start()
    try:
        account = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};"
        account += f"BlobEndpoint={server.url}/devstoreaccount1;"
        code = "import sys; from azure.storage.blob import BlobServiceClient as C;"
        code += "C.from_connection_string(sys.argv[1]).create_container('far')"
        subprocess.run([str(clouds.PYTHON), "-c", code, account], check=True)
        request = Request("azure", "az://far/zenml", str(tmp_path), "per_step", secret={"connection_string": account})
        assert run(lab, tmp_path, request)["uri"].startswith("az://far/zenml/")
    finally:
        server.stop()
