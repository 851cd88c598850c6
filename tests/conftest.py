"""What this process's clients of ZenML and Prefect may read: no configuration of whoever runs the tests.

Here and not in a folder of tests, since both packages read it when they are imported, which a test module of any
folder may do while tests are collected.
"""

from __future__ import annotations

import os
import signal
import tempfile

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
