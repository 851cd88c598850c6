"""What all cases share: servers, loopback Modal, stack. Sets the environment before Prefect is imported."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import servers
from tests.loopback import LoopbackImage, LoopbackModal

if TYPE_CHECKING:
    from tests.integration.lab import Lab

PROJECT = Path(__file__).parent / "project"
STACK_CODE = servers.ROOT / "tests" / "integration" / "stack"


@dataclass
class Yard:
    """Everything that is up."""

    folder: Path
    modal: LoopbackModal
    prefect: servers.Server
    zenml: servers.Server
    lab: Lab
    stack: str

    @property
    def base(self) -> str:
        """The folder in which steps of the cache would leave traces."""
        return str(self.folder / "known")


@contextmanager
def yard(folder: Path) -> Iterator[Yard]:
    """Start everything; ends it all when left."""
    prefect, zenml = servers.prefect_server(folder, record_at_once=True), servers.zenml_server(folder)
    for name in [name for name in os.environ if name.startswith(("ZENML", "MODAL", "PREFECT"))]:
        del os.environ[name]
    os.environ |= {
        "PREFECT_API_URL": f"{prefect.url}/api",
        "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-client-", dir=folder),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "DO_NOT_TRACK": "1",
        **servers.zenml_client_environment(folder / "zenml", zenml),
    }
    sys.path[:0] = [str(STACK_CODE), str(PROJECT)]
    image = LoopbackImage(
        python=servers.ROOT / ".venv-sandbox" / "bin" / "python",
        files={"/opt/stack-code": STACK_CODE},
        env={"PYTHONPATH": "/opt/stack-code", "ZENML_ANALYTICS_OPT_IN": "false"},
    )
    from tests.integration.lab import IMAGE, Lab

    for server in (prefect, zenml):
        server.launch()
    try:
        with LoopbackModal({IMAGE: image}) as modal:
            os.environ |= modal.env
            for server in (prefect, zenml):
                server.wait()
            (folder / "known").mkdir()
            lab = Lab(folder, modal, prefect, zenml)
            from zenml.utils import source_utils

            stack = lab.stack("modal", create_rate=20)
            source_utils.set_custom_source_root(str(PROJECT))
            yield Yard(folder, modal, prefect, zenml, lab, stack)
    finally:
        for server in (prefect, zenml):
            server.stop()
