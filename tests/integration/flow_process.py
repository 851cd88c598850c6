"""A run whose flow lives in a process of its own, so that it can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import servers
from tests.integration.lab import IMAGE, PROJECT, STACK_CODE, Lab
from tests.integration.under import Under

SCRIPT = """
import sys
import {module}
from zenml.config import DockerSettings
from zenml.utils import source_utils

source_utils.set_custom_source_root({project!r})
docker = DockerSettings(parent_image={image!r}, skip_build=True)
{module}.{pipeline}.with_options(settings={{"docker": docker, "orchestrator": {settings!r}}})(sys.argv[1])
"""


class FlowProcess:
    """Calls a pipeline of a module in ``project`` as a user's script does."""

    def __init__(self, lab: Lab, folder: Path, stack: str, pipeline: str, settings: Mapping[str, Any]) -> None:
        module, _, name = pipeline.partition(".")
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "script.log"
        script = folder / "script.py"
        script.write_text(
            SCRIPT.format(module=module, project=str(PROJECT), image=IMAGE, pipeline=name, settings=dict(settings))
        )
        lab.activate(stack)
        self.under = Under(lab, folder)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(script), str(folder)],
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (STACK_CODE, PROJECT, servers.ROOT)))},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL, as the kernel and a lost machine do; nothing if it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def __enter__(self) -> FlowProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
