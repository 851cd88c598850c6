"""Somebody else's step operator: it runs a step as a program beside the one that calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from zenml.step_operators import BaseStepOperator, BaseStepOperatorConfig, BaseStepOperatorFlavor


class Beside(BaseStepOperator):
    def launch(self, info: Any, entrypoint_command: list[str], environment: dict[str, str]) -> None:
        del info
        command = [sys.executable if part == "python" else part for part in entrypoint_command]
        subprocess.run(command, env={**os.environ, **environment, "BESIDE": "yes"}, check=True)


class BesideFlavor(BaseStepOperatorFlavor):
    @property
    def name(self) -> str:
        return "beside"

    @property
    def config_class(self) -> type[BaseStepOperatorConfig]:
        return BaseStepOperatorConfig

    @property
    def implementation_class(self) -> type[Beside]:
        return Beside
