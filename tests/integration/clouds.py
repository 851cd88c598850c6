"""The object stores of three clouds, as their emulators have them: programs of ``.venv-cloud``, and one of npm."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests import ports, servers
from tests.integration.cloud_azure import Authority

BIN = servers.ROOT / ".venv-cloud" / "bin"
PYTHON = BIN / "python"
HOST = "127.0.0.1"


def s3(folder: Path) -> servers.Server:
    """Amazon's S3 and STS, by moto."""
    port = ports.free_port()
    argv = [str(BIN / "moto_server"), "-H", HOST, "-p", str(port)]
    environment = {"MOTO_RECORDER_FILEPATH": str(folder / "asked")}
    return servers.Server("moto", argv, environment, f"http://{HOST}:{port}", "/moto-api/", folder / "moto.log")


def gcs(folder: Path) -> servers.Server:
    """Google's Cloud Storage, by gcp-storage-emulator."""
    port = ports.free_port()
    argv = [str(BIN / "gcp-storage-emulator"), "start", "--host", HOST, "--port", str(port), "--in-memory"]
    argv += ["--default-bucket", "far"]
    return servers.Server("gcs", argv, {}, f"http://{HOST}:{port}", "/", folder / "gcs.log")


def zenml(folder: Path, variables: Mapping[str, str]) -> servers.Server:
    """A ZenML server that has the clouds' service connectors, as that of ZenML's image has."""
    server = servers.zenml_server(folder)
    argv = [str(PYTHON), *server.argv[1:]]
    return replace(server, argv=argv, environment={**server.environment, **variables})


def make_bucket(moto: servers.Server, name: str) -> None:
    """Make a bucket, and write down what is asked of it from now on."""
    put = urllib.request.Request(f"{moto.url}/{name}", method="PUT")
    start = urllib.request.Request(f"{moto.url}/moto-api/recorder/start-recording", method="POST")
    for request in (put, start):
        urllib.request.urlopen(request).close()


def make_repository(moto: servers.Server, name: str) -> None:
    """Make a repository of ECR: ZenML uses no account without one."""
    target = "AmazonEC2ContainerRegistry_V20150921.CreateRepository"
    scope = "AKIA/20260101/us-east-1/ecr/aws4_request"
    headers = {"X-Amz-Target": target, "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}"}
    headers["Content-Type"] = "application/x-amz-json-1.1"
    body = json.dumps({"repositoryName": name}).encode()
    urllib.request.urlopen(urllib.request.Request(moto.url, body, headers)).close()


def asked(moto: servers.Server) -> Iterator[tuple[str, str, str]]:
    """What was asked of moto: method, path, and the id of the key that signed it."""
    with urllib.request.urlopen(f"{moto.url}/moto-api/recorder/download-recording") as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        request: dict[str, Any] = json.loads(line)
        signed = {name.lower(): value for name, value in request["headers"].items()}.get("authorization", "")
        _, _, credential = signed.partition("Credential=")
        yield request["method"], request["url"].partition(moto.url)[2], credential.partition("/")[0]


def azurite(folder: Path, authority: Authority | None = None) -> servers.Server | None:
    """Azure's Blob Storage, by Azurite, which answers what isn't signed with 400; None without Node.js.

    With an authority it has a certificate of it, and takes tokens as well.
    """
    program = BIN.parent / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    node = shutil.which("node")
    if node is None or not program.exists():
        return None
    port = ports.free_port()
    argv = [node, str(program), "--skipApiVersionCheck", "--blobHost", HOST, "--blobPort", str(port)]
    argv += ["--location", str(folder / "azurite")]
    server = servers.Server("azurite", argv, {}, f"http://{HOST}:{port}", "/", folder / "azurite.log", well=400)
    if authority is None:
        return server
    argv += ["--oauth", "basic", "--cert", str(authority.certificate), "--key", str(authority.key)]
    return replace(server, url=f"https://{HOST}:{port}", verify=authority.context())
