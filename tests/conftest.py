"""What this process's clients of ZenML and Prefect may read: no configuration of whoever runs the tests.

Here and not in a folder of tests, since both packages read it when they are imported, which a test module of any
folder may do while tests are collected.
"""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

from tests import servers

os.environ |= {
    # Where the Prefect server of the integration tests listens, once they start it.
    "PREFECT_API_URL": f"http://127.0.0.1:{servers.free_port()}/api",
    "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-client-"),
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "ZENML_CONFIG_PATH": tempfile.mkdtemp(prefix="zenml-tests-"),
    "ZENML_ANALYTICS_OPT_IN": "false",
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background: the processes of the tests wouldn't hear Ctrl-C either.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TOGETHER = {
    *("finished", "diamond", "expected", "operators", "installed", "scene", "stored", "helped", "rendered"),
    *("loaded_beside_zenml", "pool"),
}
"""Fixtures that take long: the tests of a module that share one are one worker's (``--dist loadgroup``)."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every other test goes to whichever worker is free."""
    for fixture in TOGETHER & set(getattr(item, "fixturenames", ())):
        where = "everywhere" if fixture == "pool" else item.path.stem
        item.add_marker(pytest.mark.xdist_group(f"{fixture} {where}"))
