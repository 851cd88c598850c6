"""``python -m tests.databases``: the databases that servers make when they first start, kept for whoever starts later.

Taking an empty database through all of Prefect's and ZenML's migrations costs ten seconds of processor time, for each
server of each of pytest's workers. One that is kept is what a server left that has just started: a server of another
release than it was made by migrates it, as it would its own.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".test" / "databases"
ZENML_STORE = "local_stores/default_zen_store/zenml.db"
"""Where ZenML has its database, in the folder of its configuration."""
PLACES = {"prefect": "prefect/prefect.db", "zenml": f"zenml-server/{ZENML_STORE}"}
"""Where a server has its database, in its folder."""


def kept(package: str) -> Path:
    """Where the database of a package's server is kept."""
    return FOLDER / f"{package}-{version(package)}.db"


def main() -> None:
    """Start both servers, and keep what they made."""
    from tests import servers  # which takes what is kept from here

    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="databases-") as name:
        folder = Path(name)
        started = {
            "prefect": servers.prefect_server(folder, new=True).launch(),
            "zenml": servers.zenml_server(folder, new=True).launch(),
        }
        try:
            for package, server in started.items():
                server.wait()
                _keep(folder / PLACES[package], kept(package))
        finally:
            for server in started.values():
                server.stop()


def _keep(database: Path, where: Path) -> None:
    # Not a copy of the file: the newest of it may be in the journal beside it.
    unfinished = where.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(unfinished)) as target:
        source.backup(target)
    os.replace(unfinished, where)


def put(package: str, where: Path) -> None:
    """Put what is kept where a server will look for its database; nothing where it has one, or none is kept."""
    if where.exists() or not kept(package).exists():
        return
    where.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept(package), where)


if __name__ == "__main__":
    main()
