"""What this process's clients of ZenML and Prefect may read: no configuration of whoever runs the tests.

Here and not in a folder of tests, since both packages read it when they are imported, which a test module of any
folder may do while tests are collected.
"""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests import ports
from tests.shown import pytest_terminal_summary as pytest_terminal_summary

os.environ |= {
    # Where the Prefect server of the integration tests listens, once they start it.
    "PREFECT_API_URL": f"http://127.0.0.1:{ports.free_port()}/api",
    "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-client-"),
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "ZENML_CONFIG_PATH": tempfile.mkdtemp(prefix="zenml-tests-"),
    "ZENML_ANALYTICS_OPT_IN": "false",
    # Else a fit spins in a thread for each core, and where these are shared it takes fifty times as long.
    "OMP_NUM_THREADS": "1",
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background: the processes of the tests wouldn't hear Ctrl-C either.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TOGETHER = {
    "tests/deployments/test_files.py": "",
    "tests/host/test_orphan.py": "client",
    "tests/host/test_patience.py": "",
    "tests/host/test_pipeline.py": "client",
    "tests/host/test_serve.py": "client",
    "tests/host/test_step.py": "client",
    "tests/host/test_step_runs.py": "client",
    "tests/integration/matrix/test_matrix.py": "",
    "tests/integration/test_bad_input.py::TestParametersOfTheFlow": "",
    "tests/integration/test_deploy.py": "",
    "tests/integration/test_images.py": "",
    "tests/integration/test_schedules.py": "worker",
    "tests/integration/test_status.py": "worker",
    "tests/integration/test_step_operator.py": "",
    "tests/integration/test_sweep.py": "",
    "tests/integration/test_ui.py": "",
    "tests/integration/test_work_pool.py": "worker",
    "tests/docs/test_commands.py": "",
    "tests/security/test_search.py": "",
    "tests/unit/test_image_facts.py": "",
    "tests/unit/test_imports.py": "",
    "tests/unit/test_stored.py": "",
}
"""Modules and classes whose tests share what takes long to make; one with a word shares it with the others of it."""
WITH_SERVERS = ("tests/integration/", "worker")
"""What scopes begin with whose tests share servers, which each of pytest's workers has to itself."""


class Scheduling(LoadScopeScheduling):
    """Each test goes to whichever of pytest's workers is free; tests that share something costly go to one.

    pytest-xdist's own ``--dist loadgroup`` would do, but 3.8 finds no group under pytest 9.2: it writes them into a
    test's id, which can't be changed any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        module, *inside = nodeid.split("::")
        for scope in (module, "::".join([module, *inside[:1]])):
            if scope in TOGETHER:
                return TOGETHER[scope] or scope
        return nodeid

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Each fourth worker begins with what needs no servers, and the others end with it.

        Servers cost their worker ten seconds of the processor. By then the fourth may not need any.
        """
        without = int(node.gateway.id.removeprefix("gw")) % 4 == 3
        liked = (scope for scope in self.workqueue if scope.startswith(WITH_SERVERS) != without)
        scope = next(liked, None)
        if scope is not None:
            self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)
