"""The object stores of three clouds, as their emulators have them: programs of ``.venv-cloud``, and one of npm."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import servers

BIN = servers.ROOT / ".venv-cloud" / "bin"
PYTHON = BIN / "python"
HOST = "127.0.0.1"


def s3(folder: Path) -> servers.Server:
    """Amazon's S3 and STS, by moto."""
    port = servers.free_port()
    argv = [str(BIN / "moto_server"), "-H", HOST, "-p", str(port)]
    environment = {"MOTO_RECORDER_FILEPATH": str(folder / "asked")}
    return servers.Server("moto", argv, environment, f"http://{HOST}:{port}", "/moto-api/", folder / "moto.log")


def gcs(folder: Path) -> servers.Server:
    """Google's Cloud Storage, by gcp-storage-emulator."""
    port = servers.free_port()
    argv = [str(BIN / "gcp-storage-emulator"), "start", "--host", HOST, "--port", str(port), "--in-memory"]
    argv += ["--default-bucket", "far"]
    return servers.Server("gcs", argv, {}, f"http://{HOST}:{port}", "/", folder / "gcs.log")


def make_bucket(moto: servers.Server, name: str) -> None:
    """Make a bucket, and write down what is asked of it from now on."""
    put = urllib.request.Request(f"{moto.url}/{name}", method="PUT")
    start = urllib.request.Request(f"{moto.url}/moto-api/recorder/start-recording", method="POST")
    for request in (put, start):
        urllib.request.urlopen(request).close()


def asked(moto: servers.Server) -> Iterator[tuple[str, str, str]]:
    """What was asked of moto: method, path, and the id of the key that signed it."""
    with urllib.request.urlopen(f"{moto.url}/moto-api/recorder/download-recording") as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        request: dict[str, Any] = json.loads(line)
        signed = {name.lower(): value for name, value in request["headers"].items()}.get("authorization", "")
        _, _, credential = signed.partition("Credential=")
        yield request["method"], request["url"].partition(moto.url)[2], credential.partition("/")[0]


def azurite(folder: Path) -> servers.Server | None:
    """Azure's Blob Storage, by Azurite, which answers what isn't signed with 400; None without Node.js."""
    program = BIN.parent / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    node = shutil.which("node")
    if node is None or not program.exists():
        return None
    port = servers.free_port()
    argv = [node, str(program), "--skipApiVersionCheck", "--blobHost", HOST, "--blobPort", str(port)]
    argv += ["--location", str(folder / "azurite")]
    return servers.Server("azurite", argv, {}, f"http://{HOST}:{port}", "/", folder / "azurite.log", well=400)
